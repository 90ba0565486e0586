"""Students made of teachers: copied bit by bit, layers that do what they did, heads by label names, truncated widths."""

from __future__ import annotations

import copy
import re
import types

import pytest
import torch
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    Qwen2Config,
    RobertaConfig,
    T5Config,
    ViTConfig,
)

from conftest import make_bert
from hf_distill import Teacher
from hf_distill.errors import ConfigurationError, DataError, UnsafeFileError
from hf_distill.evaluation.cost import describe_student
from hf_distill.students.building import build_student, evenly_spaced

LABELS = ["negative", "neutral", "positive"]
COMMON = {
    "initializer_range": 0.3,
    "id2label": dict(enumerate(LABELS)),
    "label2id": {n: i for i, n in enumerate(LABELS)},
}
WORDS = {"vocab_size": 50, "pad_token_id": 0}
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    **COMMON,
}
CONFIGS = {
    "bert": lambda: BertConfig(**SIZES, **WORDS, max_position_embeddings=40),
    "roberta": lambda: RobertaConfig(**SIZES, **WORDS, max_position_embeddings=40),
    "deberta": lambda: DebertaV2Config(
        **SIZES,
        **WORDS,
        max_position_embeddings=40,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        conv_kernel_size=3,
    ),
    "distilbert": lambda: DistilBertConfig(
        dim=32, n_layers=4, n_heads=4, hidden_dim=64, max_position_embeddings=40, **WORDS, **COMMON
    ),
    "electra": lambda: ElectraConfig(**SIZES, **WORDS, embedding_size=12, max_position_embeddings=40),
    # Three halves of 32 inside the feed-forward: its two blocks are as long as the three of the attention.
    "modernbert": lambda: ModernBertConfig(
        **{**SIZES, "intermediate_size": 48},
        **WORDS,
        bos_token_id=1,
        eos_token_id=2,
        cls_token_id=1,
        sep_token_id=2,
        global_attn_every_n_layers=3,
        local_attention=8,
    ),
    "vit": lambda: ViTConfig(**SIZES, image_size=16, patch_size=4),
    "gpt2": lambda: GPT2Config(n_embd=32, n_layer=4, n_head=4, n_positions=40, **WORDS, **COMMON),
    "llama": lambda: LlamaConfig(**SIZES, **WORDS, num_key_value_heads=2),
    "qwen2": lambda: Qwen2Config(
        **SIZES,
        **WORDS,
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=2,
    ),
}
every_architecture = pytest.mark.parametrize("name", CONFIGS)


def make(name: str, **changes):
    """A random teacher whose biases and norms are random too, so that nothing is copied by luck."""
    config = CONFIGS[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    model = auto(name).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def auto(name: str):
    return AutoModelForImageClassification if name == "vit" else AutoModelForSequenceClassification


def inputs(name: str) -> dict[str, torch.Tensor]:
    """Three rows, of 20 tokens (the last row of 15): longer than every window."""
    generator = torch.Generator().manual_seed(1)
    if name == "vit":
        return {"pixel_values": torch.randn(3, 3, 16, 16, generator=generator)}
    tokens = torch.randint(3, 50, (3, 20), generator=generator)
    mask = torch.ones_like(tokens)
    tokens[2, 15:], mask[2, 15:] = 0, 0
    return {"input_ids": tokens, "attention_mask": mask}


def logits(model, name: str) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs(name)).logits


def layer_list(model) -> str:
    (name,) = [
        name for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == 4
    ]
    return name


@pytest.mark.parametrize(
    ("count", "of", "kept"), [(6, 12, (0, 2, 4, 7, 9, 11)), (3, 6, (0, 3, 5)), (2, 5, (0, 4))]
)
def test_evenly_spaced_by_hand(count, of, kept):
    assert evenly_spaced(count, of) == kept


def test_evenly_spaced_has_first_and_last_and_never_a_layer_twice():
    assert evenly_spaced(1, of=5) == (4,)
    for of in range(2, 40):
        for count in range(2, of + 1):
            kept = evenly_spaced(count, of)
            assert len(set(kept)) == count and list(kept) == sorted(kept)
            assert (kept[0], kept[-1]) == (0, of - 1)
        assert evenly_spaced(of, of) == tuple(range(of))


@every_architecture
def test_all_layers_are_the_teacher_through_files(name, tmp_path):
    teacher = make(name)
    teacher.save_pretrained(tmp_path / "teacher")
    student = build_student(str(tmp_path / "teacher"), layers=4)
    assert type(student) is type(teacher) and not student.training
    student.save_pretrained(tmp_path / "student")
    loaded = auto(name).from_pretrained(tmp_path / "student")
    assert torch.equal(logits(student, name), logits(teacher, name))
    assert torch.equal(logits(loaded, name), logits(teacher, name))
    assert loaded.config.id2label == dict(enumerate(LABELS))


@every_architecture
def test_some_layers_are_bit_equal_and_do_what_they_did(name, tmp_path):
    teacher, kept = make(name), (0, 2, 3)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    student, stack = build_student(teacher, layers=kept), layer_list(teacher)
    assert student.config.num_hidden_layers == 3
    for key, value in student.state_dict().items():
        if key.startswith(f"{stack}."):
            place, rest = key.removeprefix(f"{stack}.").split(".", 1)
            key = f"{stack}.{kept[int(place)]}.{rest}"
        assert torch.equal(value, before[key]), key
        assert value.data_ptr() != teacher.state_dict()[key].data_ptr()
    student.save_pretrained(tmp_path)
    loaded = auto(name).from_pretrained(tmp_path)

    # The teacher itself, with the layers taken out of its list.
    shortened = copy.deepcopy(teacher)
    layers = shortened.get_submodule(stack)
    parent, _, last = stack.rpartition(".")
    setattr(shortened.get_submodule(parent), last, nn.ModuleList([layers[i] for i in kept]))
    shortened.config.num_hidden_layers, shortened.config.use_cache = 3, False
    if getattr(shortened.config, "layer_types", None):
        shortened.config.layer_types = [shortened.config.layer_types[i] for i in kept]
    expected = logits(shortened, name)
    assert not torch.allclose(expected, logits(teacher, name), atol=1e-2)
    torch.testing.assert_close(logits(student, name), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(loaded, name), logits(student, name))
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def test_kinds_of_attention_go_with_their_layers():
    assert build_student(make("modernbert"), layers=(0, 2, 3)).config.layer_types == [
        "full_attention",
        "sliding_attention",
        "full_attention",
    ]
    assert build_student(make("qwen2"), layers=(1, 3)).config.layer_types == [
        "full_attention",
        "sliding_attention",
    ]


@every_architecture
@pytest.mark.parametrize("hidden_size", [None, 16])
def test_it_trains_and_comes_back(name, hidden_size, tmp_path):
    student = build_student(make(name), layers=2, hidden_size=hidden_size)
    assert student.config.hidden_size == (hidden_size or 32)
    labels = torch.tensor([0, 1, 2])
    before = nn.functional.cross_entropy(logits(student, name), labels)
    optimizer = torch.optim.AdamW(student.train().parameters(), lr=3e-3)
    torch.manual_seed(0)
    for _ in range(8):
        loss = nn.functional.cross_entropy(student(**inputs(name)).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
        optimizer.step()
    assert nn.functional.cross_entropy(logits(student, name), labels) < before
    student.save_pretrained(tmp_path)
    loaded = auto(name).from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, name), logits(student, name))


def test_narrower_by_the_first_dimensions_of_each_matrix(capsys):
    teacher, student = make("bert"), build_student(make("bert"), layers=(1, 3), hidden_size=24)
    config = student.config
    assert (config.num_attention_heads, config.hidden_size, config.intermediate_size) == (3, 24, 48)
    old, new = teacher.state_dict(), student.state_dict()
    layer, place = "bert.encoder.layer.3.", "bert.encoder.layer.1."
    assert torch.equal(
        new[place + "attention.self.query.weight"], old[layer + "attention.self.query.weight"][:24, :24]
    )
    assert torch.equal(
        new[place + "intermediate.dense.weight"], old[layer + "intermediate.dense.weight"][:48, :24]
    )
    assert torch.equal(
        new["bert.embeddings.word_embeddings.weight"], old["bert.embeddings.word_embeddings.weight"][:, :24]
    )
    assert torch.equal(new["classifier.weight"], old["classifier.weight"][:, :24])
    assert (
        "its hidden size is 24 instead of 32: of each trained matrix only the first"
        in capsys.readouterr().out
    )


def test_narrower_keeps_the_blocks_of_fused_projections_apart():
    old, new = (
        make("modernbert").state_dict(),
        build_student(make("modernbert"), hidden_size=16, layers=4).state_dict(),
    )
    query, key, value = old["model.layers.1.attn.Wqkv.weight"].split(32)
    expected = torch.cat([query[:16, :16], key[:16, :16], value[:16, :16]])
    assert torch.equal(new["model.layers.1.attn.Wqkv.weight"], expected)
    entry, gate = old["model.layers.1.mlp.Wi.weight"].split(48)
    assert torch.equal(new["model.layers.1.mlp.Wi.weight"], torch.cat([entry[:24, :16], gate[:24, :16]]))

    old, new = make("gpt2").state_dict(), build_student(make("gpt2"), hidden_size=16, layers=4).state_dict()
    query, key, value = old["transformer.h.2.attn.c_attn.weight"].split(32, dim=1)
    expected = torch.cat([query[:16, :16], key[:16, :16], value[:16, :16]], 1)
    assert torch.equal(new["transformer.h.2.attn.c_attn.weight"], expected)
    assert torch.equal(
        new["transformer.h.2.mlp.c_fc.weight"], old["transformer.h.2.mlp.c_fc.weight"][:16, :64]
    )


def test_narrower_with_grouped_heads_keeps_each_heads_keys():
    student = build_student(make("llama"), layers=2, hidden_size=16)
    assert (
        student.config.num_attention_heads,
        student.config.num_key_value_heads,
        student.config.head_dim,
    ) == (2, 1, 8)
    old, new = make("llama").state_dict(), student.state_dict()
    assert torch.equal(
        new["model.layers.1.self_attn.k_proj.weight"], old["model.layers.3.self_attn.k_proj.weight"][:8, :16]
    )
    single = make("llama", num_key_value_heads=1)
    assert build_student(single, layers=2, hidden_size=24).config.num_key_value_heads == 1


def test_heads_may_be_wider_than_the_hidden_size():
    student = build_student(make("llama", head_dim=16), layers=2, hidden_size=16)
    assert student.model.layers[0].self_attn.q_proj.weight.shape == (32, 16)
    logits(student, "llama")


def test_a_language_model_keeps_its_class_and_tied_weights():
    torch.manual_seed(0)
    config = LlamaConfig(**SIZES, **WORDS, num_key_value_heads=2, tie_word_embeddings=True)
    teacher = LlamaForCausalLM(config).eval()
    student = build_student(teacher, layers=4)
    assert torch.equal(logits(student, "llama"), logits(teacher, "llama"))
    assert student.lm_head.weight is student.model.embed_tokens.weight
    with pytest.raises(DataError, match="LlamaForCausalLM has no head whose outputs are labels"):
        build_student(teacher, layers=4, labels=["a", "b"])


# ---- Labels ----


def test_rows_of_the_head_go_by_label_names(capsys):
    teacher = make("roberta")
    student = build_student(teacher, layers=4, labels=["Positive", "negative"])
    assert student.config.id2label == {0: "Positive", 1: "negative"}
    torch.testing.assert_close(logits(student, "roberta"), logits(teacher, "roberta")[:, [2, 0]])
    assert "its head leaves out neutral" in capsys.readouterr().out
    narrow = build_student(teacher, layers=4, hidden_size=16, labels=["positive", "negative"])
    expected = teacher.classifier.out_proj.weight[[2, 0]][:, :16]
    assert torch.equal(narrow.classifier.out_proj.weight, expected)


def test_labels_the_teacher_lacks_get_fresh_rows(capsys):
    teacher = make("bert")
    student = build_student(teacher, layers=4, labels=["mixed", "positive", "negative", "neutral"])
    assert torch.equal(student.classifier.weight[1:], teacher.classifier.weight[[2, 0, 1]])
    assert student.classifier.weight[0].abs().sum() > 0
    assert (
        "its head has fresh rows for mixed, which BertForSequenceClassification lacks"
        in capsys.readouterr().out
    )
    with pytest.raises(DataError, match="share no names"):
        build_student(teacher, layers=4, labels=["x", "y"])
    with pytest.raises(DataError, match="all different"):
        build_student(teacher, layers=4, labels=["positive", "positive"])


def test_a_teachers_own_names_count(bert_tokenizer):
    model = make_bert(bert_tokenizer, ["LABEL_0", "LABEL_1"])
    teacher = Teacher(model, bert_tokenizer, name="bert", labels=["no", "yes"])
    assert build_student(teacher, layers=1).config.id2label == {0: "no", 1: "yes"}
    student = build_student(teacher, layers=2, labels=["yes", "no"])
    assert torch.equal(student.classifier.weight, model.classifier.weight[[1, 0]])
    assert all(p.requires_grad for p in student.parameters()) and not any(
        p.requires_grad for p in model.parameters()
    )
    with pytest.raises(DataError, match="placeholders"):
        build_student(model, layers=2, labels=["yes", "no"])


def test_half_precision_becomes_float32_without_a_change():
    teacher = make("bert").bfloat16()
    student = build_student(teacher, layers=4)
    assert {value.dtype for value in student.state_dict().values() if value.is_floating_point()} == {
        torch.float32
    }
    assert torch.equal(student.classifier.weight.bfloat16(), teacher.classifier.weight)


def test_an_adapter_is_merged_and_stays_as_it_is():
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=2, init_lora_weights=False)
    teacher = peft.get_peft_model(make("bert"), config)
    expected = logits(teacher, "bert")
    student = build_student(teacher, layers=4)
    assert not hasattr(student, "peft_config") and type(student).__name__ == "BertForSequenceClassification"
    torch.testing.assert_close(logits(student, "bert"), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(teacher, "bert"), expected)
    assert not torch.allclose(logits(make("bert"), "bert"), expected, atol=1e-3)


# ---- What is refused, and why ----


@pytest.mark.parametrize("layers", [0, 5, -1, True, 2.0, "2", (), (0, 4), (2, 0), (1, 1), (0, -1), (0, True)])
def test_layers_that_there_are_not(layers):
    with pytest.raises(
        ConfigurationError, match="has 4 layers: give how many to keep, from 1 to 4, or which"
    ):
        build_student(make("bert"), layers=layers)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        (AlbertConfig(**SIZES, vocab_size=50, embedding_size=16), "no list of 4 layers"),
        (
            T5Config(
                d_model=32,
                d_kv=8,
                d_ff=64,
                num_layers=4,
                num_heads=4,
                vocab_size=50,
                decoder_start_token_id=0,
            ),
            r"2 lists \(transformer.encoder.block, transformer.decoder.block\) of 4 layers",
        ),
    ],
)
def test_stacks_that_are_none(config, found):
    with pytest.raises(ConfigurationError, match=found):
        build_student(AutoModelForSequenceClassification.from_config(config), layers=2)


def test_layers_that_would_do_something_else():
    with pytest.raises(
        ConfigurationError,
        match=r"layer 1 .* layer 0 .* attn_norm was LayerNorm .*would be Identity.*\(0, …\)",
    ):
        build_student(make("modernbert"), layers=(1, 3))
    by_depth = make("gpt2", scale_attn_by_inverse_layer_idx=True)
    with pytest.raises(ConfigurationError, match="layer 3 would do something else as layer 1 .*scaling"):
        build_student(by_depth, layers=2)
    assert torch.equal(logits(build_student(by_depth, layers=4), "gpt2"), logits(by_depth, "gpt2"))
    by_place = make("deberta")  # its convolution follows the first layer, wherever that is from
    build_student(by_place, layers=(1, 2))


@pytest.mark.parametrize(
    ("name", "hidden_size", "allowed"),
    [("bert", 20, "8, 16, 24"), ("bert", 40, "8, 16, 24"), ("bert", 0, "8, 16, 24"), ("llama", 24, "16")],
)
def test_widths_that_no_whole_heads_have(name, hidden_size, allowed):
    with pytest.raises(
        ConfigurationError, match=f"cannot become {hidden_size}: its 4 heads .* Choose {allowed}.$"
    ):
        build_student(make(name), layers=2, hidden_size=hidden_size)


def test_widths_that_change_the_architecture():
    """ELECTRA projects its embeddings only where they are not as wide as the rest."""
    with pytest.raises(ConfigurationError, match="has no place for electra.embeddings_project"):
        build_student(make("electra", embedding_size=16), layers=2, hidden_size=16)
    assert (
        build_student(make("electra", embedding_size=32), layers=2, hidden_size=16).config.embedding_size
        == 16
    )


def test_widths_of_fused_projections_that_nobody_knows():
    torch.manual_seed(0)
    teacher = AutoModelForSequenceClassification.from_config(GPTNeoXConfig(**SIZES, **WORDS))
    with pytest.raises(ConfigurationError, match="query_key_value.weight would become 48 instead of 96 long"):
        build_student(teacher, layers=2, hidden_size=16)
    build_student(teacher, layers=2)


def test_checkpoints_that_cannot_be_loaded(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        build_student(str(tmp_path / "none"))
    teacher = make("bert")
    teacher.save_pretrained(tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").rename(tmp_path / "kept")
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(UnsafeFileError, match="holds no model.safetensors"):
        build_student(str(tmp_path / "pickled"), layers=2)
    BertForMaskedLM(teacher.config).save_pretrained(tmp_path / "body")
    config = (
        (tmp_path / "body" / "config.json").read_text().replace("ForMaskedLM", "ForSequenceClassification")
    )
    (tmp_path / "body" / "config.json").write_text(config)
    with pytest.raises(DataError, match="no trained head for BertForSequenceClassification"):
        build_student(str(tmp_path / "body"), layers=2)
    with pytest.raises(ConfigurationError, match="found a Linear"):
        build_student(nn.Linear(2, 2))


# ---- What it costs ----


def test_parameters_bytes_and_speed_up_in_one_table(bert_tokenizer):
    model = make_bert(bert_tokenizer, ["no", "yes"])
    live = Teacher(model, bert_tokenizer, name="live")
    student = build_student(live, layers=1).train()
    cached = types.SimpleNamespace(name="cached", num_parameters=1234)
    table = describe_student(student, [live, cached], batch_size=2, length=500, rounds=3)
    header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[:5]]
    assert header == ["model", "parameters", "bytes", "forward", "student is faster"]
    (own, theirs, stored) = rows
    assert own[:2] == ["student", f"{student.num_parameters():,}"] and own[4] == ""
    buffers = sum(buffer.nbytes for buffer in student.buffers())
    assert own[2] == f"{4 * student.num_parameters() + buffers:,}"
    assert theirs[:2] == ["live", f"{model.num_parameters():,}"]
    assert re.fullmatch(r"\d+\.\d ms", theirs[3]) and re.fullmatch(r"\d+\.\d x", theirs[4])
    assert stored == ["cached", "1,234", "–", "–", "–"]
    # 64 positions are all that there are.
    assert table.endswith(
        "Forward of batches of 2 x 64 on cpu, 1 thread(s), in inference mode: medians of 3 round(s) in turns."
    )
    assert student.training and not model.training


def test_without_a_teacher_in_memory_nothing_is_measured():
    cached = types.SimpleNamespace(name="cached", num_parameters=1234)
    table = describe_student(make("bert"), [cached])
    assert "Forward of" not in table and "ms" not in table


@every_architecture
def test_every_architecture_can_be_measured(name, bert_tokenizer):
    teacher = Teacher(make_bert(bert_tokenizer, ["no", "yes"]), bert_tokenizer, name="t")
    assert " ms " in describe_student(make(name), [teacher], batch_size=2, length=8, rounds=1)
