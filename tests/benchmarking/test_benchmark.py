"""`benchmark`: what is timed, what is said of it, and what is refused before anything is timed."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_families import VOCABULARY, tiny, zero_randomly
from tiny_task import TinyTask
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    RemBertConfig,
    RemBertForSequenceClassification,
)

from bplightning.benchmarking import benchmark as benchmarking
from bplightning.benchmarking.backends import check_backends, compiling, generate, prepare, recorded
from bplightning.benchmarking.benchmark import BenchmarkSettings, benchmark
from bplightning.benchmarking.models import find_candidates, fitted
from bplightning.benchmarking.plot import draw, plot
from bplightning.benchmarking.rows import by_work, rows, settled
from bplightning.benchmarking.table import render
from bplightning.cli import main
from bplightning.compaction.exact_compaction import compact
from bplightning.compaction.example_inputs import random_inputs
from bplightning.compaction.loading import save_compact
from bplightning.errors import UserError
from bplightning.exporting import files as exporting_files
from bplightning.measuring import measure
from bplightning.measuring.timing import Times

CPU = torch.device("cpu")
# torch.compile's own imports use what torch.jit has deprecated.
COMPILING = pytest.mark.filterwarnings("ignore:`torch.jit.script.*` is deprecated:DeprecationWarning")
QUICK = BenchmarkSettings(seconds=0.01, shapes=[(2, 8)])


def saved(folder: Path, model_type: str = "bert", **config: Any) -> Path:
    """A dense model and the compact one made from it, in folders of that name."""
    model = tiny(model_type, **config)
    model.save_pretrained(folder / "dense")
    zero_randomly(model, "heads", seed=0)
    save_compact(compact(model), folder / "compact")
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("pair"))


def row_of(found: Any, model: str, *, work: str = "forward", backend: str = "eager") -> Any:
    (row,) = (row for row in found["rows"] if (row["model"], row["work"], row["backend"]) == (model, work, backend))
    return row


def made(*milliseconds: float, rounds: int = 30) -> Times:
    """Rounds that repeat the given milliseconds."""
    values = tuple(milliseconds[index % len(milliseconds)] for index in range(rounds))
    return Times(values, values)


# -- what is said of times ---------------------------------------------------------------------------------------------


def rows_of(times: dict[tuple[str, tuple[str, str]], Times], flops: Any, **settings: Any) -> dict[Any, Any]:
    settings = {"shape": (8, 16), "new_tokens": 5, "reference": "dense", "tolerance": 0.02} | settings
    works = by_work(times, new_tokens=settings["new_tokens"])  # type: ignore[arg-type]
    return {(row["work"], row["model"], row["backend"]): row for row in rows(works, flops=flops, **settings)}


def test_a_backend_is_never_credited_to_pruning() -> None:
    times = {
        ("forward", ("dense", "eager")): made(12.0),
        ("forward", ("compact", "eager")): made(4.0),
        ("forward", ("dense", "onnx")): made(6.0),
        ("forward", ("compact", "onnx")): made(3.0),
    }
    found = rows_of(times, {"dense": {"forward": 400}, "compact": {"forward": 100}})
    compact_onnx, dense_onnx = found["forward", "compact", "onnx"], found["forward", "dense", "onnx"]
    assert compact_onnx["speedup"] == {"ratio": 2.0, "low": 2.0, "high": 2.0, "settled": True}
    assert compact_onnx["speedup_over_eager"]["ratio"] == 4.0
    assert (compact_onnx["ideal_speedup"], compact_onnx["efficiency"]) == (4.0, 0.5)
    assert dense_onnx["speedup_over_eager"]["ratio"] == 2.0
    assert dense_onnx["speedup"] is dense_onnx["ideal_speedup"] is dense_onnx["efficiency"] is None
    assert found["forward", "dense", "eager"]["speedup_over_eager"] is None


def test_throughput_follows_from_the_median() -> None:
    row = rows_of({("forward", ("dense", "eager")): made(4.0)}, {"dense": {"forward": 1}})["forward", "dense", "eager"]
    assert (row["rows_per_second"], row["tokens_per_second"]) == (2000, 32000)
    assert (row["shape"], row["batch_size"], row["length"], row["new_tokens"]) == ("8x16", 8, 16, None)


def test_decoding_is_the_rest_of_each_round_by_token() -> None:
    times = {
        ("first_token", ("dense", "eager")): made(10.0, 30.0),  # a machine that is slow every other round
        ("generation", ("dense", "eager")): made(30.0, 90.0),
        ("first_token", ("compact", "eager")): made(4.0, 12.0),
        ("generation", ("compact", "eager")): made(12.0, 36.0),
    }
    flops = {"first_token": 100, "generation": 140, "decoding": 10}
    found = rows_of(times, {"dense": flops, "compact": {name: count // 2 for name, count in flops.items()}})
    dense, small = found["decoding", "dense", "eager"], found["decoding", "compact", "eager"]
    assert dense["latency_ms"]["median"] == pytest.approx((20 + 60) / 4 / 2)
    assert small["speedup"]["ratio"] == pytest.approx(2.5)
    assert small["ideal_speedup"] == 2
    assert dense["tokens_per_second"] == dense["rows_per_second"] == pytest.approx(1000 * 8 / 10)
    whole = found["generation", "dense", "eager"]
    assert whole["tokens_per_second"] == pytest.approx(1000 * 8 * 5 / 60)
    assert found["first_token", "dense", "eager"]["tokens_per_second"] == pytest.approx(1000 * 8 * 16 / 20)


def test_a_ratio_of_few_rounds_is_not_settled_however_narrow() -> None:
    times = {("forward", (name, "eager")): made(ms, rounds=10) for name, ms in (("dense", 4.0), ("compact", 2.0))}
    found = rows_of(times, {"dense": {"forward": 2}, "compact": {"forward": 1}})
    assert found["forward", "compact", "eager"]["speedup"]["settled"] is False


def test_settled_when_every_ratio_is_known_well_enough() -> None:
    def now(**times: Times) -> bool:
        works = by_work({("forward", (name, "eager")): each for name, each in times.items()}, new_tokens=2)  # type: ignore[misc]
        return settled(works, reference="dense", tolerance=0.02)

    assert now(dense=made(4.0), compact=made(2.0))
    assert now(dense=made(4.0, 8.0), compact=made(2.0, 4.0)), "the ratio is steady, whatever the machine does"
    assert not now(dense=made(4.0), compact=made(2.0, 2.5))
    assert not now(dense=made(4.0, rounds=10), compact=made(2.0, rounds=10)), "narrow by chance"
    assert now(dense=made(4.0))
    assert not now(dense=made(4.0, 5.0))


# -- what is timed -----------------------------------------------------------------------------------------------------


def test_dense_and_compact_side_by_side(pair: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    watched: list[tuple[float, str]] = []
    found = benchmark(
        str(pair / "compact"),
        str(pair / "dense"),
        BenchmarkSettings(shapes=[(1, 8), (2, 16)], seconds=0.01, threads=2),
        on_progress=lambda *said: watched.append(said),
    )
    assert threads == [2, torch.get_num_threads()]
    assert [(row["shape"], row["model"]) for row in found["rows"]] == [
        ("1x8", "dense"),
        ("1x8", "compact"),
        ("2x16", "dense"),
        ("2x16", "compact"),
    ]
    models = {
        name: find_candidates(str(pair / name))[0].load(dtype=torch.float32, device=CPU) for name in found["models"]
    }
    for row in found["rows"]:
        ids = torch.zeros(row["batch_size"], row["length"], dtype=torch.long)
        assert row["flops"] == measure.flops(models[row["model"]], {"input_ids": ids})
        assert row["rounds"] >= 6
        assert 0 < row["latency_ms"]["median"] <= row["latency_ms"]["p90"]
    dense, small = found["rows"][2:]
    assert small["ideal_speedup"] == dense["flops"] / small["flops"] > 1.1
    assert small["efficiency"] == pytest.approx(small["speedup"]["ratio"] / small["ideal_speedup"])
    assert found["models"]["dense"]["bytes_on_disk"] == (pair / "dense" / "model.safetensors").stat().st_size
    assert found["models"]["compact"]["parameters"]["all"] == sum(p.numel() for p in models["compact"].parameters())
    assert found["reference"] == "dense"
    fractions = [fraction for fraction, _ in watched]
    assert fractions == sorted(fractions)
    assert {what for _, what in watched} >= {"1x8", "2x16"}
    json.dumps(found, allow_nan=False)


def test_a_model_alone_has_times_and_no_ratio(pair: Path) -> None:
    found = benchmark(str(pair / "compact"), settings=replace(QUICK, dtype="bfloat16"))
    assert [(row["model"], row["speedup"]) for row in found["rows"]] == [("compact", None)]
    assert found["settings"]["dtype"] == "bfloat16"
    assert list(benchmark(str(pair / "dense"), settings=QUICK)["models"]) == ["dense"]


def test_a_run_stands_for_its_compact_model_and_its_baseline(pair: Path, tmp_path: Path) -> None:
    run = tmp_path / "version_0"
    run.mkdir()
    (run / "config.yaml").write_text(f"baseline: {pair / 'dense'}\n")
    with pytest.raises(UserError, match="has no compact model yet: write one with `compact`"):
        find_candidates(str(run))
    (run / "compact").symlink_to(pair / "compact")
    assert [(each.name, each.path) for each in find_candidates(str(run))] == [
        ("dense", str(pair / "dense")),
        ("compact", str(run / "compact")),
    ]
    (run / "config.yaml").write_text("baseline: none\n")
    assert [each.name for each in find_candidates(str(run))] == ["compact"]


class Counting(nn.Module):
    """Counts the tokens that each call of a model is given."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.lengths: list[int] = []
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: nn.Module, given: Any, named: dict[str, Any]) -> None:
        ids = named.get("decoder_input_ids", named.get("input_ids"))
        self.lengths.append(ids.shape[1])


@pytest.mark.parametrize(("model_type", "auto"), [("llama", AutoModelForCausalLM), ("bart", AutoModelForSeq2SeqLM)])
def test_generation_writes_all_tokens_with_cache_whatever_the_model_would_rather(
    tmp_path: Path, model_type: str, auto: type
) -> None:
    model = tiny(model_type, auto=auto)
    config = model.generation_config
    config.eos_token_id, config.num_beams, config.max_length = list(range(VOCABULARY)), 3, 4  # each token is an end
    model.save_pretrained(tmp_path / "dense")
    loaded = find_candidates(str(tmp_path / "dense"))[0].load(dtype=torch.float32, device=CPU)
    counting, decoder = Counting(loaded), model_type == "llama"
    ids = torch.full((2, 9), 7)
    written: Any = generate(loaded, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, tokens=5)
    assert written.shape == (2, 5 + (9 if decoder else 1))
    assert counting.lengths == [9 if decoder else 1, 1, 1, 1, 1]


def test_generating_models_are_timed_by_first_token_and_decoding(tmp_path: Path) -> None:
    folder = saved(tmp_path, "t5", auto=AutoModelForSeq2SeqLM)
    found = benchmark(str(folder / "compact"), str(folder / "dense"), settings=replace(QUICK, new_tokens=4))
    assert [row["work"] for row in found["rows"][::2]] == ["first_token", "generation", "decoding"]
    assert [row["new_tokens"] for row in found["rows"][::2]] == [1, 4, 4]
    first, whole, each = (
        row_of(found, "dense", work=work)["flops"] for work in ("first_token", "generation", "decoding")
    )
    assert each == (whole - first) // 3
    assert 0 < each < first < whole
    assert row_of(found, "compact", work="decoding")["ideal_speedup"] > 1.1
    with pytest.raises(
        UserError, match=r"which compile cannot time, but --backends is eager,compile: leave compile out"
    ):
        benchmark(str(folder / "compact"), settings=replace(QUICK, backends=["eager", "compile"]))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_generating_models_are_timed_in_onnx_too(tmp_path: Path) -> None:
    layers = {"num_layers": 1, "num_decoder_layers": 1}  # an export takes seconds a layer
    folder = saved(tmp_path, "t5", auto=AutoModelForSeq2SeqLM, **layers)
    found = benchmark(str(folder / "compact"), settings=replace(QUICK, new_tokens=3, backends=["onnx"]))
    timed = {(row["backend"], row["work"]) for row in found["rows"]}
    works = ("first_token", "generation", "decoding")
    assert timed == {(backend, work) for backend in ("eager", "onnx") for work in works}


@pytest.mark.parametrize(
    ("model_type", "asked", "used"),
    [
        ("bert", [(1, 30), (1, 50), (1, 60)], [(1, 30), (1, 40)]),
        ("roberta", [(1, 60)], [(1, 38)]),  # of 40 positions two stand for padding
        ("vit", [(1, 128), (1, 384), (2, 128)], [(1, 10), (2, 10)]),
    ],
)
def test_shapes_are_fitted_once_each_and_it_is_said(model_type: str, asked: Any, used: Any) -> None:
    model = tiny(model_type)
    found, changed = fitted([model], asked, new_tokens=2)
    assert found == used
    assert len(changed) == sum(shape not in used for shape in asked)
    rows, tokens = used[-1]
    model(**random_inputs(model, rows, tokens))  # it has room for so many
    assert changed[-1].startswith(f"{asked[-1][0]}x{asked[-1][1]} became {rows}x{tokens}: ")


def test_a_decoder_has_one_room_for_what_it_reads_and_writes() -> None:
    llama = tiny("llama", auto=AutoModelForCausalLM)
    assert fitted([llama], [(1, 64)], new_tokens=8)[0] == [(1, 32)]
    with pytest.raises(UserError, match=r"new_tokens is 40, but the model has room for 40 tokens: give fewer\."):
        fitted([llama], [(1, 64)], new_tokens=40)


# -- backends ----------------------------------------------------------------------------------------------------------


@COMPILING
def test_compiled_is_compiled_for_every_layer_and_says_the_same(tmp_path: Path) -> None:
    class Uneven(nn.Module):
        """More layers of different widths than torch.compile makes versions of one layer's code by itself."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Layer(width) for width in range(1, 10))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    class Layer(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(4, width), nn.Linear(width, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch._dynamo.graph_break()
            return self.down(self.up(x))

    model: Any = Uneven().eval()
    inputs = {"x": torch.randn(2, 4)}
    with torch.inference_mode(), compiling():
        call: Any = prepare("compile", model, folder=tmp_path / "x")(inputs)
        torch._dynamo.utils.counters.clear()
        assert torch.allclose(call(), model(**inputs), atol=1e-5)
        compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled >= 9


@COMPILING
def test_no_compiler_is_said_in_one_line(pair: Path) -> None:
    from torch._inductor import config

    with (
        config.patch({"cpp.cxx": (None, "/no/such/compiler")}),
        pytest.raises(
            UserError, match=r"the backend compile does not work on this machine \(.*leave it out of --backends"
        ),
    ):
        benchmark(str(pair / "dense"), settings=replace(QUICK, backends=["compile"]))


def test_onnx_wants_its_packages_and_what_it_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="the backend onnx runs on the CPU in float32"):
        check_backends(["onnx"], device=CPU, dtype=torch.bfloat16)
    monkeypatch.setattr(exporting_files, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs onnx, onnxruntime, onnxscript: pip install"):
        check_backends(["onnx-int8"], device=CPU, dtype=torch.float32)


@pytest.mark.slow
def test_onnx_says_the_same_at_any_shape_but_for_its_rounding(tmp_path: Path, pair: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = find_candidates(str(pair / "compact"))[0].load(dtype=torch.float32, device=CPU)
    bind = prepare("onnx-int8", model, folder=tmp_path / "onnx")
    for shape in ((1, 8), (3, 5)):
        inputs = random_inputs(model, *shape)
        got: Any = bind(inputs)()
        with torch.inference_mode():
            expected = model(**inputs).start_logits
        difference = float((got["start_logits"] - expected).abs().max() / expected.abs().max())
        assert 1e-5 < difference < 0.2


# -- table, picture, files ---------------------------------------------------------------------------------------------


def example(*, backends: tuple[str, ...] = ("eager",), compact_ms: tuple[float, ...] = (2.0,)) -> Any:
    """A document from made times: the compact model is 5x as fast, 8x would be ideal."""
    times = {}
    for divisor, backend in enumerate(backends, 1):
        times["forward", ("dense", backend)] = made(10.0 / divisor)
        times["forward", ("compact", backend)] = made(*(each / divisor for each in compact_ms))
    found = list(rows_of(times, {"dense": {"forward": 800}, "compact": {"forward": 100}}).values())
    size = {"path": "folder", "class_name": "X", "parameters": {"all": 10, "encoder_linear": 5}, "bytes_on_disk": None}
    return {
        "reference": "dense",
        "models": {"dense": size, "compact": size},
        "settings": {
            "device": "cpu",
            "dtype": "float32",
            "backends": list(backends),
            "tolerance": 0.02,
            "seconds": 20.0,
            "changed": ["8x99 became 8x16: the model has room for no more"],
        },
        "settled": all(row["speedup"]["settled"] for row in found if row["speedup"]),
        "rows": found,
        "versions": {"torch": "2"},
        "machine": {"cpu": "a processor", "threads": 3, "device": "cpu", "platform": "Linux"},
    }


def drawn(document: Any, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render(document))
    return console.export_text()


def test_table_has_ratios_first_and_says_how_well_they_are_known() -> None:
    text = drawn(example())
    assert text.index("5.00x") < text.index("Latency and throughput") < text.index("10.0")
    assert [line.split() for line in text.splitlines() if "5.00x" in line] == [
        ["8x16", "5.00x", "5.00", "to", "5.00", "8.00x", "62", "%"]
    ]
    assert "repeated until every ratio was known within 2 %" in text
    assert "8x99 became 8x16: the model has room for no more" in text
    assert "CPU threads: 3, a processor" in text
    unsure = drawn(example(compact_ms=(2.0, 2.2)))
    assert "4.77x?" in unsure
    assert "? not known within 2 % after 20 s: give more --seconds" in unsure


def test_table_with_backends_fits_into_80_columns_and_shows_both_shares() -> None:
    text = drawn(example(backends=("eager", "onnx-int8")))
    (line,) = (line for line in text.splitlines() if "compact onnx-int8" in line and "x" in line.split()[-1])
    assert line.split()[3] == "5.00x"
    assert line.split()[-1] == "10.00x"
    assert "…" not in text


def test_picture_has_a_bar_for_each_model_its_speedup_and_the_ideal(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (axes,) = draw(example()).axes
    assert [bar.get_height() for bar in axes.patches] == [10.0, 2.0]
    assert [text.get_text() for text in axes.texts] == ["10 ms", "5.00x\n2 ms"]
    assert any(segment[0][1] == 10 / 8 for line in axes.collections for segment in line.get_segments())
    unsure = draw(example(compact_ms=(2.0, 2.2)))
    assert [text.get_text() for text in unsure.axes[0].texts][1].startswith("4.77x?\n")
    assert "? not settled" in unsure.get_suptitle()
    assert "settled" not in draw(example()).get_suptitle()
    plot(example(backends=("eager", "compile")), tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 1


def test_the_verb_prints_the_table_and_writes_the_files(
    pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = tmp_path / "new" / "speed.json", tmp_path / "new" / "speed.svg"
    given = ["benchmark", str(pair / "compact"), "--against", str(pair / "dense"), "--batch_sizes", "1,2"]
    main([*given, "--lengths", "8", "--seconds", "0.01", "--output", str(files[0]), "--plot", str(files[1])])
    out, err = capsys.readouterr()
    found = json.loads(files[0].read_text())
    assert [row["shape"] for row in found["rows"]] == ["1x8", "1x8", "2x8", "2x8"]
    assert files[1].stat().st_size > 1000
    assert out.lstrip().startswith("dense: ")
    assert "Speed-up" in out
    assert [line.split(maxsplit=2)[2] for line in err.splitlines()][-2:] == ["1x8", "2x8"]


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The one line of error to the given arguments; nothing may have been timed."""

    def timed(*args: Any, **kwargs: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(benchmarking, "side_by_side", timed)

    def of(*args: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["benchmark", *args])
        assert stop.value.code == 2
        err = capsys.readouterr().err
        assert err.splitlines()[-1].startswith("bplightning: error: ")
        assert err.count("\n") == 1, err
        return err

    return of


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--batch_sizes", "1,0"], "batch_sizes is '1,0'; it must be whole numbers, 1 or more, separated by commas"),
        (["--batch_sizes", "1.5"], "batch_sizes is '1.5'; it must be whole numbers"),
        (["--lengths", "128,"], "lengths is '128,'; it must be whole numbers"),
        (["--lengths=-1"], "lengths is '-1'; it must be whole numbers"),
        (["--threads", "0"], "threads is 0; it must be 1 or more"),
        (["--new_tokens", "1"], "new_tokens is 1; it must be 2 or more"),
        (["--tolerance", "2"], "tolerance is 2.0; it must lie between 0 and 1"),
        (["--seconds", "0"], "seconds is 0.0; it must be more than 0"),
        (
            ["--backends", "eager,tvm"],
            "backend 'tvm' is not known: --backends takes eager, cuda-graph, compile, onnx",
        ),
        (["--output", "pair"], "the output 'pair' is a folder"),
        (
            ["--output", "there.json"],
            "the output 'there.json' is there already: name another file, or give --overwrite",
        ),
        (["--plot", "there.png"], "the output 'there.png' is there already"),
        (["--backends", "cuda-graph"], "the backend cuda-graph needs an NVIDIA GPU, but device is 'cpu': give"),
        (["--plot", "new.doc"], "the plot 'new.doc' must end with one of .eps"),
        (["--against", "nowhere"], "the dense model 'nowhere' cannot be loaded"),
    ],
)
def test_settings_are_refused(
    refused: Any, pair: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pair").symlink_to(pair)
    for name in ("there.json", "there.png"):
        (tmp_path / name).write_text("mine")
    assert said in refused("pair/dense", *args)
    assert {path.name: path.read_text() for path in tmp_path.glob("*.*")} == dict.fromkeys(
        ("there.json", "there.png"), "mine"
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_recorded_pass_computes_what_is_in_its_inputs_now(pair: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(pair / "compact").eval().cuda()
    inputs = {"input_ids": torch.randint(5, 20, (2, 8)).cuda()}
    call = recorded(model, inputs)
    before = call().logits.clone()
    inputs["input_ids"].copy_(torch.randint(5, 20, (2, 8)))
    with torch.inference_mode():
        expected = model(**inputs).logits
    assert torch.allclose(call().logits, expected, atol=1e-5)
    assert not torch.allclose(before, expected, atol=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(refused: Any, pair: Path) -> None:
    assert "device is 'cuda', but torch finds no GPU here: give --device cpu" in refused(
        str(pair / "dense"), "--device", "cuda"
    )


def test_what_is_no_model_is_refused(refused: Any, tmp_path: Path) -> None:
    assert "the model 'nowhere' does not exist: give a model's folder" in refused("nowhere")
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertForCooking"]}')
    assert "is of class 'BertForCooking' by its config.json, which transformers does not have" in refused(str(tmp_path))


def test_models_that_differ_in_task_labels_or_tokens_are_refused(refused: Any, pair: Path, tmp_path: Path) -> None:
    auto = AutoModelForSequenceClassification
    tiny("bert", auto=auto).save_pretrained(tmp_path / "two")
    tiny("bert", auto=auto, num_labels=3).save_pretrained(tmp_path / "three")
    tiny("bert", vocab_size=VOCABULARY - 1).save_pretrained(tmp_path / "other")
    message = refused(str(pair / "compact"), "--against", str(tmp_path / "two"))
    assert "different tasks, BertForQuestionAnswering and BertForSequenceClassification: give --against" in message
    assert "different numbers of labels, 3 and 2" in refused(
        str(tmp_path / "three"), "--against", str(tmp_path / "two")
    )
    assert f"different vocabularies, {VOCABULARY} tokens and {VOCABULARY - 1} tokens" in refused(
        str(pair / "compact"), "--against", str(tmp_path / "other")
    )
    tiny("distilbert").save_pretrained(tmp_path / "distilled")  # another family for the same task
    assert len(find_candidates(str(tmp_path / "distilled"), str(pair / "dense"))) == 2


def test_a_trimmed_vocabulary_is_compared_on_the_tokens_that_both_know(pair: Path, tmp_path: Path) -> None:
    for name, tokens in (("dense", VOCABULARY), ("trimmed", VOCABULARY - 20)):
        tiny("bert", vocab_size=tokens).save_pretrained(tmp_path / name)
        tokenizer = TinyTask(tmp_path).tokenizer
        if name == "trimmed":
            vocabulary = tmp_path / "vocab.txt"
            vocabulary.write_text("\n".join(vocabulary.read_text().split("\n")[:tokens]))
            tokenizer = type(tokenizer)(str(vocabulary))
        tokenizer.save_pretrained(tmp_path / name)
    found = benchmark(str(tmp_path / "trimmed"), str(tmp_path / "dense"), settings=QUICK)
    assert row_of(found, "compact")["flops"] == row_of(found, "dense")["flops"]
    with pytest.raises(UserError, match="different vocabularies"):
        find_candidates(str(tmp_path / "dense"), str(tmp_path / "trimmed"))


def test_a_family_that_is_not_known_is_refused_before_anything_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RemBertConfig(**sizes, intermediate_size=16, input_embedding_size=16, output_embedding_size=16)
    RemBertForSequenceClassification(config).save_pretrained(tmp_path)
    timed: list[Any] = []
    monkeypatch.setattr(benchmarking, "side_by_side", lambda *args, **_: timed.append(args))
    with pytest.raises(UserError, match="rembert"):
        benchmark(str(tmp_path), settings=QUICK)
    assert not timed


def test_a_shape_without_room_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch, pair: Path) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(measure, "flops", full)
    with pytest.raises(UserError, match="2x8 does not fit into the memory of cpu: leave it out"):
        benchmark(str(pair / "dense"), settings=QUICK)
