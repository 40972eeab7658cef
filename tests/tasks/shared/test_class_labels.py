"""Labels: what they are, their order, and which ones are refused."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from transformers import BertConfig

from bplightning.errors import UserError
from bplightning.tasks.shared.class_labels import (
    MULTI,
    REGRESSION,
    SINGLE,
    Labels,
    labels_of,
    labels_of_model,
    read_labels,
)


def table(*labels: Any, feature: Any = None) -> Dataset:
    return Dataset.from_dict({"label": list(labels)}, features=Features({"label": feature}) if feature else None)


def named(*names: str, **fields: Any) -> BertConfig:
    return BertConfig(id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}, **fields)


def found(*labels: Any, config: BertConfig | None = None, feature: Any = None, kind: str | None = None) -> Labels:
    return labels_of(table(*labels, feature=feature), config, origin="t", problem_type=kind)


@pytest.mark.parametrize(
    ("labels", "kind", "names"),
    [
        ([2, 10, 1], SINGLE, ("1", "2", "10")),
        (["b", "10", "2"], SINGLE, ("2", "10", "b")),
        ([True, False], SINGLE, ("False", "True")),
        ([0.5, 2.0], REGRESSION, ()),
        ([Decimal("0.5"), Decimal("2.0")], REGRESSION, ()),  # as databases have numbers
        (["0.5", "2"], REGRESSION, ()),  # as CSV has numbers
        (["1e-3", "-.5"], REGRESSION, ()),
        (["1", "-1"], SINGLE, ("-1", "1")),
        (["1.2.3", "2.0"], SINGLE, ("1.2.3", "2.0")),
        ([["b"], [], ["a", "b"]], MULTI, ("a", "b")),
        ([[3], [1, 2]], MULTI, ("1", "2", "3")),
    ],
)
def test_the_labels_say_what_they_are(labels: list[Any], kind: str, names: tuple[str, ...]) -> None:
    assert (found(*labels).kind, found(*labels).names) == (kind, names)


def test_numbers_that_may_be_classes_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        found("1.0", "0.5")
        found("1.0", "0.0", kind=REGRESSION)
        assert not caplog.text
        found("1.0", "0.0")
    assert "so a regression is learned; for classes give --task.problem_type single_label" in caplog.text


@pytest.mark.parametrize(
    ("labels", "kind", "values"),
    [
        ([1, 5, 3], REGRESSION, [1.0, 5.0, 3.0]),  # stars
        (["1", "5"], REGRESSION, [1.0, 5.0]),
        ([1.0, 0.0], SINGLE, ["1", "0"]),  # how a table with gaps holds 1 and 0
        (["b, a", "a", "", None], MULTI, [["b", "a"], ["a"], [], []]),
    ],
)
def test_the_user_may_say_it(labels: list[Any], kind: str, values: list[Any]) -> None:
    assert read_labels(table(*labels), kind, origin="t") == (kind, values)
    assert found(*labels, kind=kind).kind == kind


def test_declared_names_are_kept_in_their_order() -> None:
    feature = ClassLabel(names=["zero", "one", "two"])
    assert found(1, 0, feature=feature).names == ("zero", "one", "two")  # the third too, which no example has
    assert found([1], [], feature=List(feature)) == Labels(MULTI, ("zero", "one", "two"))


def test_the_order_of_a_model_with_the_same_labels_is_kept() -> None:
    labels = found(0, 1, feature=ClassLabel(names=["no", "yes"]), config=named("yes", "no"))
    assert labels.names == ("yes", "no")
    assert labels.names[labels.positive] == "yes"  # what F1 is about stays
    assert found("no", "yes", config=named("nay", "yes")).names == ("no", "yes")


def test_numbers_take_the_names_of_a_model_that_has_as_many() -> None:
    labels = found(0, 1, config=named("bad", "good"))
    assert labels.check(table(1, 0), origin="t")["label"][:] == ["good", "bad"]
    assert found(0, 1).names == found(0, 1, config=BertConfig()).names == ("0", "1")  # LABEL_0 is no name
    assert found(0, 1, config=named("a", "b", "c")).names == ("0", "1")
    assert found(1, 2, config=named("a", "b")).names == ("1", "2")
    with pytest.raises(UserError, match="example 1 of 'v' has the label '2'"):
        labels.check(table(2), origin="v")


def test_a_number_is_no_label_where_training_has_names() -> None:
    with pytest.raises(UserError, match=r"example 2 of 'v' has the label '1', which .* known are 'bad', 'good'"):
        found("bad", "good").check(table("bad", "1"), origin="v")


@pytest.mark.parametrize(
    ("trained", "given"), [(["bad", "good"], ["good", "ugly"]), ([["bad"], ["good"]], [["good"], ["bad", "ugly"]])]
)
def test_an_unknown_label_is_named_with_its_row(trained: Any, given: Any) -> None:
    with pytest.raises(UserError, match=r"example 2 of 'valid\.csv' has the label 'ugly', .*known are 'bad', 'good'"):
        found(*trained).check(table(*given), origin="valid.csv")


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        (["a", None], None, "example 2 of 't' has no label"),
        (["a", ""], None, "example 2 of 't' has no label"),
        ([0.5, float("nan")], None, "example 2 of 't' has no label"),
        ([["a"], None], None, "example 2 of 't' has no label"),
        ([["a"], [None]], None, "example 2 of 't' has no label"),
        ([0, -1], ClassLabel(names=["a", "b"]), r"example 2 of 't' has the label -1, .*GLUE's test sets"),
        ([[0.0, 1.0]], None, r"example 1 of 't' has the labels \[0.0, 1.0\]: list the names"),
        ([0.5, float("inf")], None, "example 2 of 't' has the label inf, where a regression needs a number"),
        (["a", "a"], None, "'t' has one label only, 'a'"),
        ([[], []], List(Value("string")), "'t' has no label at all"),
        ([{"a": 1}], None, "are of type .*a.*: give whole numbers or names"),
    ],
)
def test_labels_that_are_none(labels: list[Any], feature: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        found(*labels, feature=feature)


@pytest.mark.parametrize(
    ("trained", "given", "message"),
    [
        (["a", "b"], [["a"]], "the labels of 'v' are lists, and what is to be learned is a single_label"),
        ([0.5], ["a"], "example 1 of 'v' has the label 'a', where a regression needs a number"),
        ([0.5], [True], "example 1 of 'v' has the label True"),
        ([["a"], ["b"]], [1], "are of type int64, and what is to be learned is a multi_label"),
    ],
)
def test_labels_of_another_kind(trained: list[Any], given: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        found(*trained).check(table(*given), origin="v")


def test_whole_numbers_are_numbers_too_for_a_regression() -> None:
    assert found(0.5, 2.0).check(table(1, 2), origin="v")["label"][:] == [1.0, 2.0]


def test_a_model_says_what_it_predicts() -> None:
    assert labels_of_model(named("a", "b")) == Labels(SINGLE, ("a", "b"), numbered=True)
    assert labels_of_model(BertConfig(num_labels=1)) == Labels(REGRESSION)
    assert labels_of_model(named("a", "b", problem_type=MULTI)).kind == MULTI


@pytest.mark.parametrize(
    ("labels", "model", "fits"),
    [
        (Labels(SINGLE, ("a", "b")), named("a", "b"), True),
        (Labels(SINGLE, ("a", "b")), named("b", "a"), False),
        (Labels(SINGLE, ("a", "b")), named("a", "c"), False),
        (Labels(SINGLE, ("a", "b")), BertConfig(), True),  # its labels have no names
        (Labels(SINGLE, ("0", "1")), named("a", "b"), True),
        (Labels(SINGLE, ("1", "2")), named("a", "b"), False),
        (Labels(SINGLE, ("a", "b")), named("a", "b", problem_type=MULTI), False),
        (Labels(SINGLE, ("a", "b", "c")), BertConfig(), False),
        (Labels(REGRESSION), BertConfig(num_labels=1), True),
        (Labels(REGRESSION), BertConfig(), False),
    ],
)
def test_which_models_fit(labels: Labels, model: BertConfig, fits: bool) -> None:
    assert labels.fit(labels_of_model(model)) is fits


@pytest.mark.parametrize("labels", [Labels(SINGLE, ("a", "b", "c")), Labels(MULTI, ("a", "b")), Labels(REGRESSION)])
def test_a_configuration_tells_it_again(labels: Labels) -> None:
    again = labels_of_model(BertConfig(**labels.config()))
    assert (again.kind, again.names) == (labels.kind, labels.names)


def test_the_checked_table_is_named_by_what_it_holds() -> None:
    names, other = Labels(SINGLE, ("a", "b")), Labels(SINGLE, ("b", "a"))
    assert names.check(table("a"), origin="x")._fingerprint == names.check(table("a"), origin="y")._fingerprint
    assert names.check(table("a"), origin="x")._fingerprint != other.check(table("a"), origin="x")._fingerprint
    assert names.check(table("a"), origin="x")._fingerprint != names.check(table("b"), origin="x")._fingerprint
