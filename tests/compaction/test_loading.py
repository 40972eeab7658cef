"""A compact folder loads with transformers' own `from_pretrained`, and what is loaded is an ordinary model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import tiny_encoders
import torch
from programs import said_by
from reload_in_fresh_process import logits
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_families import DENSE, LAYERS, ONE_OF_EACH_ROW, auto_of, inputs_for, padded_inputs, tiny, zero_randomly
from torch import Tensor, nn
from transformers import (
    AutoModelForQuestionAnswering,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from bplightning.compaction.equivalence import LogitDifference
from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.loading import register, save_compact
from bplightning.compaction.plan import CompactionPlan
from bplightning.compaction.saved_models import load_saved
from bplightning.errors import UserError
from bplightning.layout.prunable_layout import PrunableLayout

EMPTY = {"some": (), "empty-first": (0,), "empty-all": tuple(range(LAYERS))}
IN_FULL = [f"{model_type}+empty-first" for model_type in ONE_OF_EACH_ROW]
FOLDERS = [
    *(f"{model_type}+empty-first" for model_type in DENSE),
    *(f"{model_type}+empty-all" for model_type in ONE_OF_EACH_ROW),
    *(f"{name}+some" for name in tiny_encoders.VARIANTS),
]


def pruned(model_type: str = "bert", empty: tuple[int, ...] = (1,), **options: Any) -> PreTrainedModel:
    """A compact model: some heads and units gone everywhere, all of both in the layers `empty`."""
    model = tiny(model_type, **options)
    zero_randomly(model, "heads", seed=1, density=0.7)
    layout = PrunableLayout.of(model)
    with torch.no_grad():
        for group in layout.groups:
            if group.layer in empty:
                for member in group.members:
                    member.weight(model).zero_()
    return compact(model)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, Any]], str]:
    """What a fresh process made of every compact folder, and what it printed."""
    folder = tmp_path_factory.mktemp("compact")
    for name in FOLDERS:
        model_type, empty = name.split("+")
        model = pruned(model_type, EMPTY[empty])
        inputs = inputs_for(model, "left")
        assert save_compact(model, folder / name) == LogitDifference(0.0, 0.0)
        (folder / name / "auto").write_text(auto_of(model_type).__name__)
        torch.save(inputs, folder / name / "inputs.pt")
        torch.save(logits(model, inputs), folder / name / "expected.pt")
    (folder / "in full").write_text(" ".join(IN_FULL))
    script = Path(__file__).parents[1] / "support" / "reload_in_fresh_process.py"
    said = said_by(script, str(folder), cwd=folder)
    return json.loads((folder / "results.json").read_text()), said


@pytest.mark.timeout(400)  # the first of them waits for the fixture
@pytest.mark.parametrize("name", FOLDERS)
def test_a_fresh_process_loads_it(name: str, fresh: tuple[dict[str, dict[str, Any]], str]) -> None:
    result = fresh[0][name]
    error = result.pop("without the import")
    assert "ignore_mismatched_sizes" in error
    done = {"logits", "saved again"}
    if name in IN_FULL:
        assert result.pop("half") == "torch.float16"
        done |= {"half logits", "half, then float", "AutoModel"}
    assert result.keys() >= done
    assert all(result.values()), result


def test_it_loads_silently_and_without_the_import_loudly(fresh: tuple[dict[str, dict[str, Any]], str]) -> None:
    before, after = fresh[1].split("bplightning imported\n")
    assert "Unknown quantization type, got bplightning" in before
    same_head, _ = after.split("other heads\n")
    said = [line for line in same_head.splitlines() if line.strip() and "it/s]" not in line]
    assert said == []


# -- in this process ---------------------------------------------------------------------------------------------------


def reload(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    save_compact(model, folder)
    return AutoModelForQuestionAnswering.from_pretrained(folder)


def test_nothing_of_a_quantizer_is_left(tmp_path: Path) -> None:
    model = reload(pruned(), tmp_path / "compact")
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        assert not getattr(model, name, None), name
    assert not hasattr(model.config, "_is_quantized")
    assert not hasattr(model.base_model.config, "_is_quantized")


def test_the_file_holds_what_is_left_and_no_more(tmp_path: Path) -> None:
    dense = tiny("bert")
    model = pruned()
    save_compact(model, tmp_path / "compact")
    with safe_open(tmp_path / "compact" / "model.safetensors", "pt") as file:
        stored = {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118
    assert stored == {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert model.num_parameters() < dense.num_parameters()
    header = 8 + 200 * len(stored)
    size = (tmp_path / "compact" / "model.safetensors").stat().st_size
    assert 4 * model.num_parameters() < size < 4 * model.num_parameters() + header


def test_the_folder_is_an_ordinary_one_with_the_plan(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")))
    model = pruned()
    (tmp_path / "compact").mkdir()  # an empty folder is taken
    save_compact(model, tmp_path / "compact", tokenizer, padded_inputs("right"))
    names = {path.name for path in (tmp_path / "compact").iterdir()}
    assert names >= {"config.json", "model.safetensors", "compaction_plan.json", "tokenizer.json"}
    plan = CompactionPlan.from_json((tmp_path / "compact" / "compaction_plan.json").read_text())
    assert plan == model.compaction_plan
    config = json.loads((tmp_path / "compact" / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "bplightning"}
    assert config["compaction"]["widths"] == {group.name: len(group.kept) for group in plan.groups}
    assert [path.name for path in tmp_path.iterdir()] == ["compact"]
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "compact").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_model_that_lost_nothing_stays_an_ordinary_one(tmp_path: Path) -> None:
    save_compact(compact(tiny("bert")), tmp_path / "compact")
    config = json.loads((tmp_path / "compact" / "config.json").read_text())
    assert "quantization_config" not in config
    assert "compaction" not in config


def test_a_compact_model_compacted_again_loads(tmp_path: Path) -> None:
    model = reload(pruned(), tmp_path / "once")
    zero_randomly(model, "heads", seed=5, density=0.5)
    smaller = compact(model)
    assert smaller.num_parameters() < model.num_parameters()
    again = reload(smaller, tmp_path / "twice")
    assert torch.equal(logits(again, padded_inputs("left")), logits(smaller, padded_inputs("left")))


def test_a_bias_the_architecture_does_not_have_loads(tmp_path: Path) -> None:
    model = tiny("qwen2")
    layout = PrunableLayout.of(model)
    with torch.no_grad():
        layout.attention[1].value.weight(model)[:8] = 0
    smaller = compact(model)
    assert save_compact(smaller, tmp_path / "compact") == LogitDifference(0.0, 0.0)
    reloaded = type(model).from_pretrained(tmp_path / "compact")
    reloaded.save_pretrained(tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again")
    bias = smaller.get_submodule(layout.attention[1].output.module).bias
    assert torch.equal(again.get_submodule(layout.attention[1].output.module).bias, bias)
    assert bias.abs().sum() > 0
    with torch.no_grad():
        layout.attention[0].output.weight(again).zero_()
    assert save_compact(compact(again), tmp_path / "compacted again") == LogitDifference(0.0, 0.0)


# -- training what was loaded ------------------------------------------------------------------------------------------


class Refill(pl.LightningModule):
    """The smallest module that trains a question-answering model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.train()

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def examples() -> list[dict[str, Tensor]]:
    inputs = padded_inputs("right", batch=2) | {"start_positions": torch.tensor([1, 2])}
    inputs["end_positions"] = torch.tensor([3, 4])
    return [{name: tensor[row] for name, tensor in inputs.items()} for row in range(2)]


def train_with_lightning(model: PreTrainedModel, folder: Path) -> None:
    trainer = pl.Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
    )
    trainer.fit(Refill(model), torch.utils.data.DataLoader(examples(), batch_size=2))


def train_with_transformers(model: PreTrainedModel, folder: Path) -> None:
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=2, use_cpu=True, report_to=[], learning_rate=1e-2, disable_tqdm=True
    )
    Trainer(model=model, args=arguments, train_dataset=examples()).train()


@pytest.mark.filterwarnings("ignore")  # of Lightning and transformers, about workers and pinned memory
@pytest.mark.parametrize("train", [train_with_lightning, train_with_transformers])
def test_a_loaded_model_trains_and_saves_again(train: Callable[[PreTrainedModel, Path], None], tmp_path: Path) -> None:
    model = reload(pruned(), tmp_path / "compact")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    train(model, tmp_path / "trainer")
    for name, parameter in model.named_parameters():
        assert parameter.numel() == 0 or not torch.equal(parameter, before[name]), name
    model.eval()
    again = reload(model, tmp_path / "again")
    assert torch.equal(logits(again, padded_inputs("left")), logits(model, padded_inputs("left")))


# -- refusing ----------------------------------------------------------------------------------------------------------


def test_saving_refuses_when_the_reloaded_model_differs_and_leaves_nothing(tmp_path: Path) -> None:
    model = pruned()
    hook = model.qa_outputs.register_forward_hook(lambda module, args, output: output + 0.125)  # not in any file
    with pytest.raises(UserError, match=r"the reloaded model's logits differ by 0\.125 \("):
        save_compact(model, tmp_path / "compact")
    assert list(tmp_path.iterdir()) == []
    hook.remove()
    save_compact(model, tmp_path / "compact")


def test_saving_refuses_a_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "compact").mkdir()
    (tmp_path / "compact" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="which exists and is not an empty folder: name another one"):
        save_compact(pruned(), tmp_path / "compact")
    assert [path.name for path in tmp_path.rglob("*")] == ["compact", "mine.txt"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "compact"
    save_compact(pruned(), folder)
    return folder


def _set(*path: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def edit(field: dict[str, Any]) -> None:
        for step in path[:-1]:
            field = field[step]
        field[path[-1]] = to

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_set("version", to=5), "has version 5, but this bplightning reads versions 1 to 4"),
        (_set("widths", "encoder.0.self", to=5), r"must keep 0 to 4 heads of 'encoder\.0\.self', got 5"),
        (_set("widths", "encoder.0.self", to=-1), r"must keep 0 to 4 heads of 'encoder\.0\.self', got -1"),
        (_set("widths", "encoder.0.self", to=True), "got True"),
        (_set("widths", "encoder.0.self", to=2.0), r"got 2\.0"),
        (_set("widths", "encoder.1.feed_forward", to=10**15), "must keep 0 to 24 units of 'encoder.1.feed_forward'"),
        (_set("widths", "encoder.9.self", to=1), r"each of the model's 6 groups; it does not for \['encoder\.9\.self'"),
        (lambda field: field["widths"].pop("encoder.0.self"), r"it does not for \['encoder\.0\.self'\]"),
        (_set("widths", to=[1, 2]), "must give one width for each"),
        (_set("biases", to=["encoder.9.self"]), r"with an added bias, got \['encoder\.9\.self'\]"),
        (_set("biases", to=None), "with an added bias, got None"),
        (_set("columns", to="../../etc"), r"columns of position biases by the model's groups, got \.\./"),
        (_set("columns", "encoder.9.self", to=[0]), "columns of position biases by the model's groups"),
        (_set("widths", "other.0.self", to=1), r"it does not for \['other\.0\.self'\]"),
        (_set("unknown", to=1), "has 'unknown', which is no key of version 4"),
        (_set("version", to=1.0), r"has version 1\.0, but"),
        (_set("version", to=1), "has 'columns', which is no key of version 1"),
        (_set("stream", to=None), "must have width and skipped for the residual stream, got None"),
        (_set("stream", "width", to=33), "must keep 1 to 32 dimensions of the residual stream, got 33"),
        (_set("stream", "width", to=0), "must keep 1 to 32 dimensions of the residual stream, got 0"),
        (_set("stream", "skipped", to=[1]), r"list the sub-layers that are skipped, got \[1\]"),
        (_set("stream", "skipped", to=["encoder.9.self"]), r"lists 'encoder\.9\.self', which is no sub-layer"),
        (dict.clear, "has version None"),
    ],
)  # fmt: skip
def test_broken_widths_are_refused_in_one_line(
    edit: Callable[[dict[str, Any]], None], message: str, saved: Path, tmp_path: Path
) -> None:
    config = json.loads((saved / "config.json").read_text())
    edit(config["compaction"])
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=message) as caught:
        AutoModelForQuestionAnswering.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_widths_that_are_missing_altogether_are_refused(saved: Path, tmp_path: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    del config["compaction"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=r"config\.json's field 'compaction' has version None"):
        AutoModelForQuestionAnswering.from_pretrained(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import bplightning; assert 'transformers' not in sys.modules; import transformers",
        "import bplightning.strategies.hybrid, transformers",
    ],
)
def test_it_may_be_imported_before_transformers(saved: Path, imports: str) -> None:
    """In interpreters of their own, for in what `Program` forks transformers has been imported."""
    load = f"import sys; {imports}; print(transformers.AutoModelForQuestionAnswering.from_pretrained({str(saved)!r}))"
    done = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True, check=True)
    assert "BertForQuestionAnswering" in done.stdout


def test_registering_twice_is_once() -> None:
    register()
    register()


def test_what_belongs_into_the_folder_is_there_when_it_appears(tmp_path: Path) -> None:
    model = compact(tiny("bert"))
    folder = tmp_path / "compact"
    seen = []

    def complete(unproved: Path) -> None:
        seen.append(folder.exists())
        (unproved / "note.txt").write_text("whole")
        if len(seen) == 1:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        save_compact(model, folder, complete=complete)
    assert list(tmp_path.iterdir()) == []
    save_compact(model, folder, complete=complete)
    assert seen == [False, False]
    assert (folder / "note.txt").read_text() == "whole"


@pytest.mark.parametrize(
    "lost",
    [
        "bert.encoder.layer.1.attention.self.key.weight",
        "bert.embeddings.word_embeddings.weight",
        "bert.embeddings.position_embeddings.weight",
    ],
)
def test_weights_of_the_body_that_are_not_there_are_refused_and_not_drawn(
    saved: Path, tmp_path: Path, lost: str
) -> None:
    shutil.copytree(saved, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    weights = load_file(file)
    weights["elsewhere"] = weights.pop(lost)
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"the weights lack '{lost}', which the configuration needs"):
        BertForQuestionAnswering.from_pretrained(tmp_path / "model")


def test_another_head_than_the_saved_one_is_new(saved: Path) -> None:
    assert BertForSequenceClassification.from_pretrained(saved).classifier.weight.shape[0] == 2


EVIL = "from pathlib import Path\nPath({ran!r}).touch()\n"


class Pickled:
    """What runs when it is unpickled."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> Any:
        return Path.touch, (self.ran,)


def test_code_in_a_folder_is_not_run(saved: Path, tmp_path: Path) -> None:
    folder, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(saved, folder)
    (folder / "evil.py").write_text(EVIL.format(ran=str(ran)))
    config = json.loads((folder / "config.json").read_text())
    names = ("AutoConfig", "AutoModel", "AutoModelForQuestionAnswering")
    config["auto_map"] = dict.fromkeys(names, "evil.Evil") | {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    (folder / "config.json").write_text(json.dumps(config))
    load_saved(AutoModelForQuestionAnswering.from_pretrained, folder, what="the model")
    assert not ran.exists()
    config["model_type"] = "evil"  # of which there is no code here
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_saved(AutoModelForQuestionAnswering.from_pretrained, folder, what="the model")
    assert not ran.exists()


def test_nothing_is_unpickled(saved: Path, tmp_path: Path) -> None:
    folder, ran = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(saved, folder)
    (folder / "model.safetensors").unlink()
    torch.save({"bert.embeddings.word_embeddings.weight": Pickled(ran)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_saved(AutoModelForQuestionAnswering.from_pretrained, folder, what="the model")
    assert not ran.exists()


@pytest.mark.parametrize("place", ["../outside.safetensors", "{outside}"])
def test_weights_from_outside_a_folder_are_refused(saved: Path, tmp_path: Path, place: str) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside.safetensors"
    shutil.copytree(saved, folder)
    (folder / "model.safetensors").rename(outside)
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(outside), place.format(outside=outside))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="names weights outside of it, such as '"):
        load_saved(AutoModelForQuestionAnswering.from_pretrained, folder, what="the model")
