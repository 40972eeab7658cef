from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import tiny_families
import torch
from programs import said_by
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    AlbertTokenizer,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BertForMaskedLM,
    BertTokenizer,
    CamembertTokenizer,
    CanineTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    T5Tokenizer,
    XLMRobertaTokenizer,
)

import bplightning
from bplightning.compaction.loading import save_compact
from bplightning.compaction.tokenizer_trimming import require_same_tokens
from bplightning.compaction.vocabulary import Corpus, TrimmedVocabulary, trim_vocabulary
from bplightning.errors import UserError

TESTS = Path(__file__).parent
QA_START = TESTS.parents[1] / "tasks" / "embedded" / "embedded_start"

_SYLLABLES = [consonant + vowel for consonant in "bdklmnrst" for vowel in "aeo"]


def _sentences(count: int, *, seed: int) -> list[str]:
    """Sentences of a made-up language, some with what a tokenizer finds hard."""
    draw = random.Random(seed)
    words = ["".join(draw.choices(_SYLLABLES, k=draw.randint(1, 4))) for _ in range(40)]
    hard = ["Ünï cödé", "漢字 kana", "  two  spaces ", "1.234,5", "e\u0301", "<s> </s>", "don't", "😀", "a\tb", "ﬁ"]
    return [" ".join(draw.choices(words, k=7)) + draw.choice([".", "?", " " + draw.choice(hard)]) for _ in range(count)]


TRAINING = [text for seed in range(6) for text in _sentences(40, seed=seed)]
CORPUS = [*_sentences(40, seed=0)[:12], "Never trained: Ω ∑ qxz", "ba", " <mask> [MASK] baba"]
OTHER = [
    "wholly other words Žluťoučký \u200b\u0000 ☃",
    *_sentences(5, seed=9),
    "",
    " ",
    "x" * 300,
    "ba" * 90,
    "<s>",
    "漢" * 5,
]


def _trained(model: str, special: list[str]) -> Any:
    """The ``model`` section of a tokenizer trained on `TRAINING`, specials first."""
    if model == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    elif model == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        )
    elif model == "BPE":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    tokenizer.train_from_iterator(TRAINING, trainer)
    return json.loads(tokenizer.to_str())["model"]


def _wordpiece() -> PreTrainedTokenizerBase:
    """The special tokens in the middle of the vocabulary, as in BERT's, and the padding not first."""
    pieces = list(_trained("WordPiece", ["[UNK]"])["vocab"])
    special = ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]
    return BertTokenizer(vocab={token: i for i, token in enumerate([*pieces[:200], *special, *pieces[200:]])})


def _roberta() -> PreTrainedTokenizerBase:
    model = _trained("bytes", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return RobertaTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])


def _gpt2() -> PreTrainedTokenizerBase:
    """The one special token last, as in GPT-2."""
    model = _trained("bytes", [])
    vocab = model["vocab"] | {"<|endoftext|>": len(model["vocab"])}
    return GPT2Tokenizer(vocab=vocab, merges=[tuple(merge) for merge in model["merges"]])


def _llama3() -> PreTrainedTokenizerBase:
    """Words in the vocabulary are taken whole; special tokens beyond the vocabulary; no class of its own."""
    model = _trained("bytes", [])
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=model["vocab"], merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|begin|>", "<|end|>", "<|pad|>", "<|reserved|>"])
    begin = ("<|begin|>", tokenizer.token_to_id("<|begin|>"))
    template = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A <|begin|>:1 $B:1", special_tokens=[begin]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>", pad_token="<|pad|>"
    )


def _llama() -> PreTrainedTokenizerBase:
    """Pieces with byte fallback, and every way to put a piece together among the merges, as in converted ones."""
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    model = _trained("BPE", special)
    vocab = model["vocab"]
    pieces = [piece for piece in vocab if piece not in special]
    merges = [(p[:i], p[i:]) for p in pieces for i in range(1, len(p)) if p[:i] in vocab and p[i:] in vocab]
    return LlamaTokenizer(vocab=vocab, merges=merges, pad_token="</s>")


def _bart() -> PreTrainedTokenizerBase:
    """No class of its own either, and the special tokens numbered in the middle."""
    model = _trained("bytes", [])
    special = ["<s>", "<pad>", "</s>", "<mask>"]
    order = [*list(model["vocab"])[:290], *special, *list(model["vocab"])[290:]]
    merges = [tuple(merge) for merge in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(order)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 292), ("<s>", 290), add_prefix_space=False)
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "mask_token": "<mask>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _unigram(cls: Any, special: list[str], **arguments: Any) -> Callable[[], PreTrainedTokenizerBase]:
    def make() -> PreTrainedTokenizerBase:
        pieces = [tuple(entry) for entry in _trained("Unigram", special)["vocab"]]
        return cls(vocab=pieces, **arguments)  # type: ignore[no-any-return]

    return make


KINDS: dict[str, tuple[Callable[[], PreTrainedTokenizerBase], str, Any]] = {
    "bert": (_wordpiece, "bert", AutoModelForMaskedLM),
    "distilbert": (_wordpiece, "distilbert", AutoModelForQuestionAnswering),
    "electra": (_wordpiece, "electra", AutoModelForMaskedLM),
    "roberta": (_roberta, "roberta", AutoModelForMaskedLM),
    "gpt2": (_gpt2, "gpt2", AutoModelForCausalLM),
    "llama3": (_llama3, "llama", AutoModelForCausalLM),
    "llama": (_llama, "llama", AutoModelForCausalLM),
    "bart": (_bart, "bart", AutoModelForSeq2SeqLM),
    "xlm-roberta": (
        _unigram(XLMRobertaTokenizer, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
        "xlm-roberta",
        AutoModelForQuestionAnswering,
    ),
    "camembert": (
        _unigram(CamembertTokenizer, ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"]),
        "camembert",
        AutoModelForMaskedLM,
    ),
    "albert": (
        _unigram(AlbertTokenizer, ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]),
        "albert",
        AutoModelForMaskedLM,
    ),
    "t5": (_unigram(T5Tokenizer, ["<pad>", "</s>", "<unk>"], extra_ids=3), "t5", AutoModelForSeq2SeqLM),
}

_SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64},
    "bart": {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "max_position_embeddings": 64,
    },
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 24, "num_heads": 4, "num_layers": 1, "tie_word_embeddings": False},
    "distilbert": tiny_families._DISTILBERT_SIZES,
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
}


def _model(tokenizer: PreTrainedTokenizerBase, model_type: str, auto: Any, **settings: Any) -> PreTrainedModel:
    sizes = tiny_families._SIZES if model_type not in ("gpt2", "bart", "t5", "distilbert") else {}
    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id,
        "eos_token_id": tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id,
    }
    if model_type in ("bart", "t5"):
        ids["decoder_start_token_id"] = ids["eos_token_id"]
    if model_type == "bart":
        ids["forced_eos_token_id"] = ids["eos_token_id"]
    settings = sizes | _SIZES.get(model_type, {}) | {"max_position_embeddings": 64} | ids | settings
    settings["vocab_size"] = len(tokenizer)
    torch.manual_seed(0)
    model = auto.from_config(AutoConfig.for_model(model_type, **settings))
    tiny_families.randomize(model)
    for name, buffer in model.named_buffers():
        if name.endswith("final_logits_bias"):
            buffer.normal_()
    return model.eval()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def made() -> dict[str, tuple[PreTrainedTokenizerBase, PreTrainedModel, TrimmedVocabulary]]:
    """Every kind, trimmed to `CORPUS`."""
    results = {}
    for kind, (make, model_type, auto) in KINDS.items():
        tokenizer = make()
        model = _model(tokenizer, model_type, auto)
        results[kind] = tokenizer, model, trim_vocabulary(model, tokenizer, CORPUS)
    return results


def _calls(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> Iterator[Any]:
    """`texts` as a tokenizer may be called on them."""
    pairs = [*texts[1:], texts[0]]
    for text, other in zip(texts, pairs, strict=True):
        yield tokenizer(text)
        yield tokenizer(text, other)
        yield tokenizer(text, add_special_tokens=False)
        yield tokenizer(text, other, truncation=True, max_length=17)
    if tokenizer.pad_token is not None:
        for side in ("right", "left"):
            yield tokenizer(texts, pairs, padding=True, truncation="longest_first", max_length=20, padding_side=side)


def _same_tokens(full: PreTrainedTokenizerBase, trimmed: TrimmedVocabulary, texts: list[str]) -> None:
    small = trimmed.tokenizer
    for before, after in zip(_calls(full, texts), _calls(small, texts), strict=True):
        for row in range(len(before.encodings)):
            assert before.tokens(row) == after.tokens(row)
            kept = [trimmed.kept[id_] for id_ in after.encodings[row].ids]
            assert before.encodings[row].ids == kept
            assert before.encodings[row].attention_mask == after.encodings[row].attention_mask
            assert before.encodings[row].type_ids == after.encodings[row].type_ids


@torch.no_grad()
def _run(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    outputs = model(**inputs, output_hidden_states=True)
    hidden = outputs.decoder_hidden_states if model.config.is_encoder_decoder else outputs.hidden_states
    logits = {name: outputs[name] for name in ("logits", "start_logits", "end_logits") if name in outputs}
    return {"hidden": hidden[-1], **logits}


def _same_results(full: nn.Module, trimmed: TrimmedVocabulary, tokenizer: PreTrainedTokenizerBase) -> None:
    kept = torch.tensor(trimmed.kept)
    for text in CORPUS:
        new = torch.tensor([trimmed.tokenizer(text).input_ids[:30]])
        before, after = _run(full, kept[new]), _run(trimmed.model, new)
        if "logits" in before:
            # A matrix product with fewer columns may be added up in another order.
            torch.testing.assert_close(before.pop("logits")[..., kept], after.pop("logits"), rtol=1e-5, atol=1e-6)
        for name in before:
            assert torch.equal(before[name], after[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_texts_of_the_corpus_become_the_same_tokens_and_the_same_results(kind: str, made: dict[str, Any]) -> None:
    tokenizer, model, trimmed = made[kind]
    assert len(trimmed.kept) < trimmed.total == len(tokenizer)
    assert list(trimmed.kept) == sorted(trimmed.kept)
    assert trimmed.texts == len(CORPUS)
    assert len(trimmed.tokenizer) == len(trimmed.kept) == trimmed.model.config.vocab_size
    assert type(trimmed.tokenizer) is type(tokenizer)
    assert trimmed.tokenizer.special_tokens_map == tokenizer.special_tokens_map
    _same_tokens(tokenizer, trimmed, CORPUS)
    _same_results(model, trimmed, tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_other_text_is_read_with_what_there_is(kind: str, made: dict[str, Any]) -> None:
    tokenizer, _, trimmed = made[kind]
    for encoding in _calls(trimmed.tokenizer, OTHER):
        for row in encoding.encodings:
            assert all(0 <= id_ < len(trimmed.kept) for id_ in row.ids)
    assert kind == "gpt2" or trimmed.tokenizer.unk_token not in trimmed.tokenizer.tokenize("sesaso roronele")
    if kind in ("roberta", "gpt2", "llama3", "bart", "llama"):
        for text in OTHER:
            ids = trimmed.tokenizer(text, add_special_tokens=False).input_ids
            full = tokenizer(text, add_special_tokens=False).input_ids
            assert trimmed.tokenizer.decode(ids) == tokenizer.decode(full)


def test_saved_folders_load_in_a_fresh_process(made: dict[str, Any], tmp_path: Path) -> None:
    expected: dict[str, Any] = {}
    for kind, (tokenizer, _, trimmed) in made.items():
        difference = save_compact(trimmed.model, tmp_path / kind, copy.deepcopy(trimmed.tokenizer))
        assert difference.absolute == 0, kind
        ids = trimmed.tokenizer(CORPUS[0]).input_ids[:30]
        expected[kind] = {
            "tokens": [tokenizer(text).tokens() for text in CORPUS],
            "hidden": _run(trimmed.model, torch.tensor([ids]))["hidden"].double().sum().item(),
        }
    program = """
import json, sys, torch
from pathlib import Path
from transformers import AutoModel, AutoTokenizer
folder, texts = Path(sys.argv[1]), json.loads(sys.argv[2])
results = {}
for path in sorted(path.parent for path in folder.glob("*/config.json")):
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    ids = torch.tensor([tokenizer(texts[0]).input_ids[:30]])
    inputs = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).last_hidden_state
    tokens = [tokenizer(text).tokens() for text in texts]
    results[path.name] = {"tokens": tokens, "hidden": hidden.double().sum().item()}
print(json.dumps(results))
"""
    said = said_by(program, str(tmp_path), json.dumps(CORPUS), cwd=tmp_path)
    assert json.loads(said.splitlines()[-1]) == expected


def test_real_tokenizer_on_text_of_its_own(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(QA_START)
    model = AutoModelForQuestionAnswering.from_pretrained(QA_START, dtype=torch.float32).eval()
    path = tmp_path / "corpus.txt"
    path.write_text("Who wrote the letter?\n\nMaria wrote it in 1924, in Lisbon.\n", encoding="utf-8")
    trimmed = trim_vocabulary(model, tokenizer, Corpus(path))
    assert (trimmed.texts, trimmed.total) == (2, 939)
    _same_tokens(tokenizer, trimmed, list(Corpus(path)))
    ids = torch.tensor([trimmed.tokenizer(*Corpus(path)).input_ids])
    with torch.no_grad():
        before, after = model(torch.tensor(trimmed.kept)[ids]), trimmed.model(ids)
    assert torch.equal(before.start_logits, after.start_logits)


# -- what must be kept -------------------------------------------------------------------------------------------------


def test_wordpiece_keeps_what_a_word_begins_with_before_it_is_unknown() -> None:
    """Without ``ab``, ``abc`` would be taken for ``a ##bc``, which the full vocabulary never does."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "ab", "##bc", "##d", "b", "other"]
    tokenizer = BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)})
    assert [tokenizer.tokenize(word) for word in ("abc", "a", "bbc")] == [["[UNK]"], ["a"], ["b", "##bc"]]
    trimmed = trim_vocabulary(_model(tokenizer, "bert", AutoModelForMaskedLM), tokenizer, ["a bbc", "ABC"])
    assert trimmed.tokenizer.tokenize("abc") == ["[UNK]"]
    assert {"ab", "other"} & trimmed.tokenizer.get_vocab().keys() == {"ab"}


def test_unigram_keeps_what_an_unknown_character_costs() -> None:
    """``qa`` beats ``q`` unknown and ``a`` only while an unknown character costs as much as it did."""
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), ("a", -2.0), ("qa", -40.0)]
    rare = [("zz", -50.0), ("b", -3.0)]
    tokenizer = XLMRobertaTokenizer(vocab=[*pieces, *rare, ("<mask>", 0.0)])
    trimmed = trim_vocabulary(_model(tokenizer, "xlm-roberta", AutoModelForMaskedLM), tokenizer, ["qa a"])
    assert trimmed.tokenizer.tokenize("qa") == tokenizer.tokenize("qa")
    assert "zz" in trimmed.tokenizer.get_vocab()
    assert "b" not in trimmed.tokenizer.get_vocab()


def test_bpe_keeps_only_the_merges_on_the_way() -> None:
    """``abc`` comes from ``ab`` and ``c``; that ``a`` and ``bc`` would give it too is no reason to keep ``bc``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "ab", "bc", "abc", "abcd", "<|endoftext|>"])}
    merges = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc"), ("abc", "d")]
    tokenizer = GPT2Tokenizer(vocab=vocab, merges=merges)
    trimmed = trim_vocabulary(_model(tokenizer, "gpt2", AutoModelForCausalLM), tokenizer, ["abc"])
    gone = set(vocab) - set(trimmed.tokenizer.get_vocab())
    assert gone == {"bc", "abcd"}
    assert trimmed.tokenizer.tokenize("abcdbc") == ["abc", "d", "b", "c"]


def test_all_special_and_added_tokens_stay(made: dict[str, Any]) -> None:
    for kind, (tokenizer, _, trimmed) in made.items():
        assert set(tokenizer.added_tokens_decoder) <= set(trimmed.kept), kind
    assert "<|reserved|>" in made["llama3"][2].tokenizer.get_vocab()
    assert "<extra_id_2>" in made["t5"][2].tokenizer.get_vocab()
    bytes_left = sum(token.startswith("<0x") for token in made["llama"][2].tokenizer.get_vocab())
    assert bytes_left == 256


def test_truncation_and_padding_of_the_saved_tokenizer_stay(tmp_path: Path) -> None:
    tokenizer = _wordpiece()
    tokenizer.backend_tokenizer.enable_truncation(9)
    tokenizer.backend_tokenizer.enable_padding(length=9, pad_id=tokenizer.pad_token_id, pad_token="[PAD]")
    trimmed = trim_vocabulary(_model(tokenizer, "bert", AutoModelForMaskedLM), tokenizer, CORPUS)
    small = trimmed.tokenizer.backend_tokenizer
    assert small.truncation == tokenizer.backend_tokenizer.truncation != None  # noqa: E711 - a chain
    assert small.padding == tokenizer.backend_tokenizer.padding | {"pad_id": trimmed.tokenizer.pad_token_id}
    assert small.encode("ba").tokens == tokenizer.backend_tokenizer.encode("ba").tokens
    _same_tokens(tokenizer, trimmed, CORPUS)  # what the truncation would have cut off was read too


# -- the model ---------------------------------------------------------------------------------------------------------


def test_heads_biases_ties_and_ids_follow(made: dict[str, Any]) -> None:
    for kind, (tokenizer, model, trimmed) in made.items():
        small, kept, config = trimmed.model, torch.tensor(trimmed.kept), trimmed.model.config
        assert torch.equal(small.get_input_embeddings().weight, model.get_input_embeddings().weight[kept]), kind
        assert small.get_input_embeddings().num_embeddings == len(kept)
        assert config.pad_token_id == trimmed.tokenizer.pad_token_id == small.get_input_embeddings().padding_idx or (
            kind in ("gpt2", "t5")
        )
        head, full_head = small.get_output_embeddings(), model.get_output_embeddings()
        if full_head is not None:
            tied = full_head.weight is model.get_input_embeddings().weight
            assert (head.weight is small.get_input_embeddings().weight) == tied, kind
            assert head.out_features == len(kept)
            if full_head.bias is not None:
                assert torch.equal(head.bias, full_head.bias[kept]), kind
        for name in ("bos_token_id", "eos_token_id", "decoder_start_token_id", "forced_eos_token_id"):
            old = getattr(model.config, name, None)
            assert getattr(config, name, None) == (None if old is None else trimmed.kept.index(old)), (kind, name)
        assert len(tokenizer) == model.config.vocab_size == model.get_input_embeddings().num_embeddings
    bart, small = made["bart"][1], made["bart"][2]
    assert torch.equal(small.model.final_logits_bias, bart.final_logits_bias[:, list(small.kept)])
    assert torch.equal(
        made["roberta"][2].model.lm_head.bias, made["roberta"][1].lm_head.bias[list(made["roberta"][2].kept)]
    )
    assert made["llama"][2].model.vocab_size == len(made["llama"][2].kept)
    for kind in ("gpt2", "bart", "t5", "llama"):
        generation = made[kind][2].model.generation_config
        assert generation.eos_token_id == made[kind][2].tokenizer.eos_token_id, kind


def test_lists_of_ids_and_ids_that_are_none() -> None:
    tokenizer = _gpt2()
    model = _model(tokenizer, "gpt2", AutoModelForCausalLM)
    last = tokenizer.eos_token_id
    model.config.pad_token_id = -1
    model.generation_config.eos_token_id = [last, 300]
    used = set(trim_vocabulary(model, tokenizer, CORPUS).kept)
    unused = next(id_ for id_ in range(last) if id_ not in used)
    model.generation_config.bad_words_ids = [[last], [last, unused]]
    model.generation_config.suppress_tokens = [last, unused]
    model.generation_config.sequence_bias = [[[last], -5.0], [[300, unused], 1.0]]
    model.get_input_embeddings().padding_idx = unused
    trimmed = trim_vocabulary(model, tokenizer, CORPUS)
    new = {old: i for i, old in enumerate(trimmed.kept)}
    assert unused not in new
    generation = trimmed.model.generation_config
    assert generation.eos_token_id == [new[last], new[300]]
    assert generation.bad_words_ids == [[new[last]]]
    assert generation.suppress_tokens == [new[last]]
    assert generation.sequence_bias == [[[new[last]], -5.0]]
    trimmed.model.generate(torch.tensor([[1, 2]]), max_new_tokens=1, do_sample=False, pad_token_id=0)
    assert trimmed.model.config.pad_token_id == -1
    assert trimmed.model.get_input_embeddings().padding_idx is None


def test_positions_that_count_from_the_padding_stay() -> None:
    """RoBERTa's positions begin behind the padding's id: renumbered, every token would have another position."""
    model_ = _trained("bytes", [])
    special = ["<s>", "</s>", "<unk>", "<mask>"]
    order = [*list(model_["vocab"])[:20], "<pad>", *list(model_["vocab"])[20:], *special]
    merges = [tuple(merge) for merge in model_["merges"]]
    pieces = [*list(reversed(order[256:]))[4:10], "<pad>"]
    order = [*pieces, *(token for token in order if token not in pieces)]
    tokenizer = RobertaTokenizer(vocab={token: i for i, token in enumerate(order)}, merges=merges)
    assert tokenizer.pad_token_id == 6
    model = _model(tokenizer, "roberta", AutoModelForMaskedLM, max_position_embeddings=80)
    trimmed = trim_vocabulary(model, tokenizer, ["ba"])
    assert trimmed.model.config.pad_token_id == 6
    _same_tokens(tokenizer, trimmed, ["ba"])


def test_rows_beyond_the_tokenizer_go_and_too_few_rows_are_refused() -> None:
    tokenizer = _wordpiece()
    model = _model(tokenizer, "bert", AutoModelForMaskedLM)
    model.resize_token_embeddings(len(tokenizer) + 37, mean_resizing=False)
    trimmed = trim_vocabulary(model, tokenizer, CORPUS)
    assert trimmed.total == len(tokenizer) + 37
    assert max(trimmed.kept) < len(tokenizer)
    _same_results(model, trimmed, tokenizer)
    tokenizer.add_tokens([f"<new{i}>" for i in range(40)])
    with pytest.raises(UserError, match=r"has the id \d+, but the model has \d+ embeddings.*resize_token_embeddings"):
        trim_vocabulary(model, tokenizer, CORPUS)


def test_compact_models_stay_compact(tmp_path: Path) -> None:
    tokenizer = _wordpiece()
    model = _model(tokenizer, "bert", AutoModelForQuestionAnswering)
    tiny_families.zero_randomly(model, "heads", seed=1)
    tiny_families.zero_randomly(model, "units", seed=2)
    compact = bplightning.compact(model)
    trimmed = trim_vocabulary(compact, tokenizer, CORPUS)
    assert trimmed.model.config.compaction == compact.config.compaction
    assert trimmed.model.compaction_plan == compact.compaction_plan
    save_compact(trimmed.model, tmp_path / "small", trimmed.tokenizer)
    reloaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "small").eval()
    small = TrimmedVocabulary(reloaded, trimmed.tokenizer, trimmed.kept, trimmed.total, trimmed.texts)
    _same_results(compact, small, tokenizer)


def test_what_was_given_is_left_as_it_is() -> None:
    tokenizer = _wordpiece()
    tokenizer.backend_tokenizer.enable_truncation(9)
    model = _model(tokenizer, "bert", AutoModelForMaskedLM)
    before = (tokenizer.backend_tokenizer.to_str(), model.config.to_dict(), copy.deepcopy(model.state_dict()))
    trim_vocabulary(model, tokenizer, CORPUS)
    assert tokenizer.backend_tokenizer.to_str() == before[0]
    assert model.config.to_dict() == before[1]
    assert all(torch.equal(tensor, before[2][name]) for name, tensor in model.state_dict().items())
    assert not model.training
    assert trim_vocabulary(model.train(), tokenizer, CORPUS).model.training


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_kinds_that_cannot_be_trimmed_are_named() -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "ba": 1}, unk_token="[UNK]"))
    suffix = Tokenizer(models.BPE({"a</w>": 0}, [], end_of_word_suffix="</w>"))
    model = _model(_wordpiece(), "bert", AutoModelForMaskedLM)
    for tokenizer, kind in ((words, "WordLevel"), (suffix, "BPE with end_of_word_suffix '</w>'")):
        with pytest.raises(UserError, match=f"kind is {kind}.*Leave --vocabulary out"):
            trim_vocabulary(model, PreTrainedTokenizerFast(tokenizer_object=tokenizer), CORPUS)
    with pytest.raises(UserError, match=r"kind is CanineTokenizer without a tokenizer\.json"):
        trim_vocabulary(model, CanineTokenizer(), CORPUS)
    vision = AutoConfig.for_model("vit", hidden_size=8, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8)
    model.config = vision
    with pytest.raises(UserError, match="'vit' model has no single vocabulary"):
        trim_vocabulary(model, _wordpiece(), CORPUS)


def test_a_model_that_reads_more_than_embeddings_from_an_id_is_refused() -> None:
    class Counting(BertForMaskedLM):
        def forward(self, input_ids: Tensor, **inputs: Any) -> Any:  # type: ignore[override]
            outputs = super().forward(input_ids=input_ids, **inputs)
            outputs.logits = outputs.logits + input_ids[..., None]
            return outputs

    tokenizer = _wordpiece()
    with pytest.raises(UserError, match=r"smaller vocabulary's logits differ"):
        trim_vocabulary(Counting(_model(tokenizer, "bert", AutoModelForMaskedLM).config), tokenizer, CORPUS)


def test_an_iterator_or_a_corpus_without_tokens_is_refused() -> None:
    tokenizer = _wordpiece()
    model = _model(tokenizer, "bert", AutoModelForMaskedLM)
    with pytest.raises(UserError, match=r"ends after one pass"):
        trim_vocabulary(model, tokenizer, iter(CORPUS))
    with pytest.raises(UserError, match=r"holds no token"):
        trim_vocabulary(model, tokenizer, ["", "  "])


def test_a_text_that_comes_out_otherwise_is_shown() -> None:
    class Changing:
        """Gives another text from its second pass on, so that the trimmed tokenizer lacks what that one needs."""

        passes = 0

        def __iter__(self) -> Iterator[str]:
            self.passes += 1
            return iter(["ba"] if self.passes <= 2 else ["roro keno"])

    tokenizer = _roberta()
    model = _model(tokenizer, "roberta", AutoModelForMaskedLM)
    with pytest.raises(UserError, match=r"reads 'roro keno' as \['<s>', .*not used"):
        trim_vocabulary(model, tokenizer, Changing())


def test_a_tokenizer_that_numbers_or_joins_otherwise_is_refused() -> None:
    tokenizer = _wordpiece()
    other = copy.deepcopy(tokenizer)
    same = {id_: id_ for id_ in range(len(tokenizer))}
    assert require_same_tokens(tokenizer, other, same, CORPUS) == len(CORPUS)
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    other.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A $B:1 [SEP]:1", special_tokens=special
    )
    with pytest.raises(UserError, match=r'trimmed tokenizer reads "\(.*the full one as'):
        require_same_tokens(tokenizer, other, same, CORPUS)
    other.add_tokens("<new>")
    with pytest.raises(UserError, match=r"gives the tokens .*'<new>'.* other ids than planned"):
        require_same_tokens(tokenizer, other, same, CORPUS)


# -- the corpus --------------------------------------------------------------------------------------------------------


def test_every_format_gives_its_texts(tmp_path: Path) -> None:
    rows = [{"text": "één", "more": "two"}, {"text": "2021", "more": "NA"}]  # which are texts all the same
    (tmp_path / "a.txt").write_text("één\r\n\n  two\u2028x\n", encoding="utf-8-sig", newline="")
    (tmp_path / "a.json").write_text(json.dumps({"key": ["één", {"k": "two", "n": 3}, [["three"], None]]}))
    (tmp_path / "a.jsonl").write_text(json.dumps(rows[0]) + "\n\n" + json.dumps(rows[1]) + "\n")
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("text,more\néén,two\n2021,NA\n", encoding="utf-16")
    (tmp_path / "a.tsv").write_text("text\tmore\néén\ttwo\n2021\tNA\n")
    read = {file.suffix[1:]: list(Corpus(file)) for file in tmp_path.glob("a.*")}
    assert read["txt"] == ["één", "  two\u2028x"]
    assert read["json"] == ["één", "two", "three"]
    for suffix in ("jsonl", "parquet", "csv", "tsv"):
        assert read[suffix] == ["één", "two", "2021", "NA"], suffix
    (tmp_path / "a.jsonl").rename(tmp_path / "lines.json")  # as `fit` takes them
    assert list(Corpus(tmp_path / "lines.json")) == ["één", "two", "2021", "NA"]
    corpus = Corpus(tmp_path / "a.txt")
    assert list(corpus) == list(corpus)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.jsonl", b"[1, 2]\n \n", "holds no text"),
        ("a.txt", b"good\n\xff\xfe\n", "save the file in UTF-8"),
        ("a.json", b'{"a": ', "cannot be read after its start .*Expecting value"),
        ("a.jsonl", b'{"a": "b"}\n{"a"\n', r"cannot be read after line 1 \(.*Expecting ':'"),
        ("a.jsonl", b'"\\ud83d"\n', "surrogates not allowed"),
        ("a.json", b"[" * 100_000, r"cannot be read after its start \(.*recursion"),
        ("a.parquet", b"nothing of the kind", "cannot be read after its start"),
        ("a.doc", b"text", r"must be one of .txt, .jsonl, .json, .csv, .tsv, .parquet"),
    ],
)
def test_a_bad_corpus_is_named_with_its_fault(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"corpus '.*{name}' {message}" if message[0] != "s" else message):
        list(Corpus(tmp_path / name))


def test_a_missing_corpus_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(UserError, match=r"is no file \(looked in"):
            Corpus(path)
