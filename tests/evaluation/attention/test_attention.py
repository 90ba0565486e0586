"""Attention maps, similar layers and their pictures: values, what is restored, what is refused, files of the command."""

from __future__ import annotations

import inspect
import shutil
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    FNetConfig,
    FNetForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    LongformerConfig,
    LongformerForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    SqueezeBertConfig,
    SqueezeBertForSequenceClassification,
)
from typer.testing import CliRunner

from conftest import make_bert, make_deberta, make_roberta, make_student
from hf_distill import Teacher
from hf_distill.cli import app
from hf_distill.errors import ConfigurationError
from hf_distill.evaluation.attention import (
    attention_maps,
    layer_similarity,
    plot_attention,
    plot_similarity,
    pooled_states,
)
from hf_distill.evaluation.plots import AttentionRow, attention_grid, save_figure, similarity_grid
from hf_distill.recipe import Setup, load_recipe
from hf_distill.rows.views import TokenView
from hf_distill.runs.attention import attention_recipe

pytestmark = pytest.mark.pictures

TEXT = "a quite superb film and a dull plot"
SIZES = {
    "vocab_size": 80,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "pad_token_id": 0,
}
ENDS = {"bos_token_id": 2, "eos_token_id": 3}


def small(kind, config, **options):
    torch.manual_seed(5)
    return kind(config(**{**SIZES, **options}))


MODELS = {
    "bert": lambda t: make_bert(t["bert"], ["a", "b"]),
    "roberta": lambda t: make_roberta(t["roberta"], ["a", "b"]),
    "deberta": lambda t: make_deberta(t["unigram"], ["a", "b"]),
    "distilbert": lambda t: make_student(t["bert"], attention_dropout=0.5),
    "electra": lambda t: small(ElectraForSequenceClassification, ElectraConfig),
    "modernbert": lambda t: small(
        ModernBertForSequenceClassification, ModernBertConfig, cls_token_id=2, sep_token_id=3, **ENDS
    ),
    "gpt2": lambda t: small(GPT2ForSequenceClassification, GPT2Config, **ENDS),
    "llama": lambda t: small(LlamaForSequenceClassification, LlamaConfig, num_key_value_heads=1, **ENDS),
}
TOKENIZER = {"roberta": "roberta", "deberta": "unigram"}


@pytest.fixture
def tokenizers(bert_tokenizer, roberta_tokenizer, unigram_tokenizer):
    return {"bert": bert_tokenizer, "roberta": roberta_tokenizer, "unigram": unigram_tokenizer}


def quietly(function, *arguments, **options):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Attention probabilities")
        return function(*arguments, **options)


@pytest.mark.parametrize("kind", MODELS)
def test_maps_are_those_of_a_direct_eager_call_and_the_model_stays_as_it_was(kind, tokenizers):
    model, tokenizer = MODELS[kind](tokenizers), tokenizers[TOKENIZER.get(kind, "bert")]
    own = model.config._attn_implementation
    # A part that somebody froze must stay out of training while the rest stays in it.
    model.train()
    list(model.children())[-1].eval()
    modes = [module.training for module in model.modules()]
    maps = quietly(attention_maps, model, tokenizer, TEXT)
    assert model.config._attn_implementation == own
    assert [module.training for module in model.modules()] == modes
    assert own == ("eager" if kind == "deberta" else "sdpa")

    inputs = tokenizer(TEXT, return_tensors="pt")
    inputs = {
        key: value for key, value in inputs.items() if key in inspect.signature(model.forward).parameters
    }
    length = inputs["input_ids"].shape[1]
    assert maps.layers == tuple(range(1, model.config.num_hidden_layers + 1))
    assert maps.probabilities.shape == (len(maps.layers), 2, length, length)
    assert len(maps.tokens) == length
    torch.testing.assert_close(maps.probabilities.sum(-1), torch.ones(len(maps.layers), 2, length))
    model.eval()
    with torch.no_grad():
        before = model(**inputs).logits
        model.set_attn_implementation("eager")
        direct = model(**inputs, output_attentions=True).attentions
    torch.testing.assert_close(maps.probabilities, torch.cat(direct))
    torch.testing.assert_close(model(**inputs).logits, before)


def test_there_is_one_warning_and_only_where_something_is_switched(bert_tokenizer, teachers):
    with pytest.warns(UserWarning, match=r"eager implementation.*BertForSequenceClassification \(sdpa\)"):
        attention_maps(make_bert(bert_tokenizer, ["a", "b"]), bert_tokenizer, TEXT)
    eager = make_bert(bert_tokenizer, ["a", "b"], attn_implementation="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attention_maps(eager, bert_tokenizer, TEXT)
    with pytest.warns(UserWarning) as caught:
        plot_attention(make_student(bert_tokenizer), teachers, TEXT, processing_class=bert_tokenizer)
    (warning,) = [str(one.message) for one in caught if "eager" in str(one.message)]
    assert warning.endswith(": student (sdpa), bert (sdpa), roberta (sdpa).")


def test_the_model_is_restored_also_when_it_fails(bert_tokenizer, monkeypatch):
    model = make_bert(bert_tokenizer, ["a", "b"]).train()
    monkeypatch.setattr(model, "forward", lambda input_ids, **rest: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attention_maps(model, bert_tokenizer, TEXT)
    assert model.config._attn_implementation == "sdpa"
    assert all(module.training for module in model.modules())


def test_an_adapted_model_counts_as_its_base(bert_tokenizer):
    import peft

    config = peft.LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["query"])
    base = make_bert(bert_tokenizer, ["a", "b"])
    plain = quietly(attention_maps, base, bert_tokenizer, TEXT)
    adapted = peft.get_peft_model(base, config)  # whose B is zero
    maps = quietly(attention_maps, adapted, bert_tokenizer, TEXT)
    torch.testing.assert_close(maps.probabilities, plain.probabilities)
    assert adapted.config._attn_implementation == "sdpa"


def test_a_decoder_attends_to_nothing_that_follows(tokenizers):
    maps = quietly(attention_maps, MODELS["gpt2"](tokenizers), tokenizers["bert"], TEXT)
    assert maps.probabilities.triu(1).abs().max() == 0


def test_layers_are_counted_from_one_or_from_the_end(bert_tokenizer):
    model = make_bert(bert_tokenizer, ["a", "b"])
    whole = quietly(attention_maps, model, bert_tokenizer, TEXT)
    some = quietly(attention_maps, model, bert_tokenizer, TEXT, layers=[-1, 1])
    assert some.layers == (2, 1)
    assert torch.equal(some.probabilities, whole.probabilities.flip(0))
    for wrong in ([0], [3], [-3], []):
        with pytest.raises(ConfigurationError, match="attention in the layers 1 to 2"):
            quietly(attention_maps, model, bert_tokenizer, TEXT, layers=wrong)


def test_tokens_can_be_read(tokenizers):
    model = make_roberta(tokenizers["roberta"], ["a", "b"])
    maps = quietly(attention_maps, model, tokenizers["roberta"], "a the é")
    assert maps.tokens == ("<s>", "a", "▁the", "▁", "�", "�", "</s>")
    pair = quietly(
        attention_maps, make_bert(tokenizers["bert"], ["a", "b"]), tokenizers["bert"], ("a film", "plot")
    )
    assert pair.tokens == ("[CLS]", "a", "film", "[SEP]", "plot", "[SEP]")
    cut = quietly(attention_maps, model, tokenizers["roberta"], "the film " * 40)
    assert len(cut.tokens) == 64


@pytest.mark.parametrize(
    ("kind", "config", "options", "reason"),
    [
        (FNetForSequenceClassification, FNetConfig, {}, "its output holds 0 for 2 layers"),
        (
            LongformerForSequenceClassification,
            LongformerConfig,
            {"attention_window": 4},
            r"instead of \(1, heads, 10, 10\)",
        ),
        (
            SqueezeBertForSequenceClassification,
            SqueezeBertConfig,
            {"embedding_size": 32},
            "does not sum to 1",
        ),
    ],
    ids=["fnet", "longformer", "squeezebert"],
)
def test_what_is_no_attention_is_refused_with_the_reason(kind, config, options, reason, bert_tokenizer):
    with pytest.raises(ConfigurationError, match=f"{kind.__name__} gives no attention maps: .*{reason}"):
        quietly(attention_maps, small(kind, config, **options), bert_tokenizer, TEXT)


def numpy_cka(x, y):
    """Kornblith et al. 2019, in the form of features instead of Gram matrices, float64."""
    x, y = x - x.mean(0), y - y.mean(0)
    cross = np.linalg.norm(x.T @ y, "fro") ** 2
    return cross / (np.linalg.norm(x.T @ x, "fro") * np.linalg.norm(y.T @ y, "fro"))


def one_by_one(model, tokenizer, texts):
    """Mean over tokens of every layer, (L+1, N, D), each text alone and therefore without padding."""
    with torch.no_grad():
        rows = [
            model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
            for text in texts
        ]
    return [np.stack([row[i][0].mean(0).double().numpy() for row in rows]) for i in range(len(rows[0]))]


def test_similarity_is_cka_of_means_without_padding(teachers, bert_tokenizer, held_out):
    texts = held_out["text"][:17]
    student = make_student(bert_tokenizer, attention_dropout=0.5).train()
    found = layer_similarity(student, TokenView(bert_tokenizer, 64), teachers[1], texts, batch_size=5)
    assert found.shape == (2, 3)
    assert student.training
    own = one_by_one(student.eval(), bert_tokenizer, texts)
    theirs = one_by_one(teachers[1].model, teachers[1].view.tokenizer, texts)
    expected = [[numpy_cka(x, y) for y in theirs] for x in own]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(
        layer_similarity(student, TokenView(bert_tokenizer, 64), teachers[1], texts, batch_size=17),
        found,
        atol=1e-5,
    )


def test_a_model_is_like_itself_and_less_like_others(teachers, held_out):
    first, second, _ = teachers
    own = layer_similarity(first.model, first.view, first, held_out["text"])
    np.testing.assert_allclose(own.diagonal(), 1, atol=1e-5)
    torch.testing.assert_close(own, own.T)
    other = layer_similarity(first.model, first.view, second, held_out["text"])
    assert other.max() < 0.9


def test_pairs_are_pooled_too_and_two_texts_are_too_few(teachers, held_out):
    teacher = teachers[0]
    pairs = [(a, b) for a, b in zip(held_out["text"][:4], held_out["text"][4:8], strict=True)]
    states = pooled_states(teacher.model, teacher.view, pairs, "It", batch_size=3)
    inputs = teacher.view.tokenizer(*pairs[3], return_tensors="pt")
    with torch.no_grad():
        last = teacher.model(**inputs, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(states[-1][3], last[0].mean(0), atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigurationError, match="There are 2 texts"):
        layer_similarity(teacher.model, teacher.view, teacher, held_out["text"][:2])


def shown(figure):
    """Titles of the panels with an image, in their order."""
    return [axes.get_title() for axes in figure.axes if axes.images]


def test_the_figure_has_a_line_per_model_and_a_column_per_layer(checkpoints, teachers):
    figure = quietly(plot_attention, checkpoints["student"], [*teachers[:2], checkpoints["deberta"]], TEXT)
    assert shown(figure) == ["layer 1 of 1", *["layer 1 of 2", "layer 2 of 2"] * 3]
    lines = [axes for axes in figure.axes if axes.get_ylabel()]
    assert [axes.get_ylabel() for axes in lines] == ["student", "bert", "roberta", "deberta"]
    for axes, name in zip(lines, ("bert", "bert", "roberta", "deberta"), strict=True):
        teacher = Teacher.from_pretrained(checkpoints[name])
        maps = quietly(attention_maps, teacher.model, teacher.view.tokenizer, TEXT)
        labels = [label.get_text() for label in axes.get_yticklabels()]
        assert labels == [label.get_text() for label in axes.get_xticklabels()] == list(maps.tokens)
        if axes is not lines[0]:
            np.testing.assert_allclose(axes.images[0].get_array(), maps.probabilities[0].mean(0), atol=1e-6)


def test_layers_and_heads_are_chosen_and_what_a_model_lacks_is_said(checkpoints, teachers):
    options = {"layers": [2, -1], "head": 2}
    figure = quietly(plot_attention, checkpoints["student"], teachers[:1], TEXT, **options)
    assert shown(figure) == ["layer 1 of 1, head 2 of 2", *["layer 2 of 2, head 2 of 2"] * 2]
    assert figure.axes[0].texts[0].get_text() == "no layer 2: it has 1"
    assert figure.axes[0].get_ylabel() == "student"
    teacher = teachers[0]
    maps = quietly(attention_maps, teacher.model, teacher.view.tokenizer, TEXT)
    np.testing.assert_allclose(figure.axes[2].images[0].get_array(), maps.probabilities[1, 1], atol=1e-6)
    for wrong, message in (
        ({"layers": [5]}, r"No model has layers \[5\]: .*student has 1 x 2, bert has 2 x 2"),
        ({"head": 3}, "No model has head 3: "),
        ({"layers": [0], "head": 0}, r"No model has layers \[0\] with head 0"),
        ({"layers": []}, r"No model has layers \[\]"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            quietly(plot_attention, checkpoints["student"], teachers[:1], TEXT, **wrong)


def test_long_sentences_are_cut_and_that_is_said():
    weights = np.full((50, 50), 0.02)
    figure = attention_grid([AttentionRow("bert", [f"t{i}" for i in range(50)], [("layer 1 of 1", weights)])])
    panel = figure.axes[0]
    assert panel.get_ylabel() == "bert\nfirst 40 of 50 tokens"
    assert len(panel.get_xticklabels()) == 40 and panel.images[0].get_array().shape == (40, 40)


def test_similarity_has_a_panel_per_teacher_and_a_line_before(
    checkpoints, teachers, held_out, bert_tokenizer
):
    texts = held_out["text"][:8]
    alone = plot_similarity(checkpoints["student"], teachers[:2], texts)
    assert shown(alone) == ["bert", "roberta"]
    before = make_student(bert_tokenizer, seed=9)
    both = plot_similarity(checkpoints["student"], teachers[:2], texts, before=before)
    panels = [axes for axes in both.axes if axes.images]
    assert [axes.get_ylabel() for axes in panels] == [
        "before training\nstudent layer",
        "",
        "after training\nstudent layer",
        "",
    ]
    view = TokenView(bert_tokenizer, 64)
    for panel, student in ((panels[1], before), (panels[3], None)):
        student = student or DistilBertForSequenceClassification.from_pretrained(checkpoints["student"])
        values = layer_similarity(student, view, teachers[1], texts).numpy()
        np.testing.assert_allclose(panel.images[0].get_array(), values, atol=1e-6)
        numbers = {text.get_position(): text.get_text() for text in panel.texts}
        assert numbers == {(x, y): f"{value:.2f}" for (y, x), value in np.ndenumerate(values)}
    assert [label.get_text() for label in panels[0].get_xticklabels()] == ["emb", "1", "2"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["emb", "1"]


def test_a_teacher_without_a_model_and_a_student_without_a_tokenizer_are_refused(checkpoints, bert_tokenizer):
    class Service:
        name, label_names, view = "service", ("a", "b"), None

        def __call__(self, view, example_id):
            raise AssertionError

    with pytest.raises(ConfigurationError, match="'service' is a Service and has no model in memory"):
        quietly(plot_attention, checkpoints["student"], [Service()], TEXT)
    with pytest.raises(ConfigurationError, match="processing_class= is missing"):
        plot_attention(make_student(bert_tokenizer), [], TEXT)


@pytest.mark.slow
def test_hostile_tokens_and_names_are_drawn_as_they_are(tmp_path):
    names = ["$\\frac{$", "a_b^c$x$", "line\nbreak\t", "中文", "", "%s {0} \\n", "very-long-" * 9]
    rows = [
        AttentionRow(name, names, [("layer 1 of 1", np.full((7, 7), 1 / 7)), ("", None)]) for name in names
    ]
    lines = [("before training", [(name, np.eye(2, 3)) for name in names])]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for draw, argument in ((attention_grid, rows), (similarity_grid, lines)):
            path = save_figure(draw, tmp_path / f"{draw.__name__}.png", argument)
            width, height = struct.unpack(">II", path.read_bytes()[16:24])
            assert 300 < width < 4000 and 300 < height < 5000


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the command in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, ["attention", *map(str, arguments)])


@pytest.fixture
def recipe(run, checkpoints, rows, held_out, bert_tokenizer) -> str:
    """A recipe whose student is trained already: another one than the recipe starts with."""
    rows.to_json("train.jsonl")
    held_out.to_json("validation.jsonl")
    Path("tiny.yaml").write_text(f"""
data: {{files: {{train: train.jsonl, validation: validation.jsonl}}, label_names: [negative, positive]}}
teachers: {{models: [{checkpoints["bert"]}, {{model: {checkpoints["roberta"]}, name: student}}], cache_dir: cache}}
student: {{model: {checkpoints["student"]}}}
training: {{use_cpu: true, output_dir: run}}
""")
    make_student(bert_tokenizer, ["negative", "positive"], seed=9).save_pretrained("run")
    bert_tokenizer.save_pretrained("run")
    return "tiny.yaml"


def test_the_command_writes_pictures_and_a_section_of_the_report(run, recipe, held_out):
    Path("run/report.md").write_text("# Evaluation\n\nbest\n\n## Else\n\nstays\n")
    done = run(recipe)
    assert done.exit_code == 0, (done.output, done.exception)
    assert "run/attention.md, attention.png and similarity.png" in done.stdout
    assert done.stdout.count("eager") == 1
    assert (
        Path("run/attention.png").read_bytes()[:4]
        == Path("run/similarity.png").read_bytes()[:4]
        == b"\x89PNG"
    )
    page = Path("run/attention.md").read_text()
    assert f"    {held_out['text'][0]}\n" in page
    assert "33 rows of the validation split" in page
    assert page.count("| student 0 |") == page.count("| student 1 |") == 2
    assert "### bert" in page and "### student" in page and "![" in page
    report = Path("run/report.md").read_text()
    assert report.startswith("# Evaluation\n\nbest\n\n## Else\n\nstays\n\n## Attention and similarity\n")
    assert "(attention.png)" in report and "(similarity.png)" in report and "(attention.md)" in report
    # The section is replaced, also where others stand behind it.
    Path("run/report.md").write_text(report + "\n## Later\n\nstays too\n")
    assert run(recipe, "--output", "else where", "--text", "a dull plot", "--rows", "5").exit_code == 0
    report = Path("run/report.md").read_text()
    assert report.count("## Attention and similarity") == 1 and "stays too" in report
    assert "(../else%20where/attention.png)" in report and "5 rows" in report
    assert "    a dull plot\n" in Path("else where/attention.md").read_text()
    assert not Path("cache").exists()


def test_before_is_the_student_that_training_starts_with(run, recipe, checkpoints, bert_tokenizer, held_out):
    scratch = (
        "student={config: {model_type: distilbert, dim: 24, hidden_dim: 48, n_layers: 1, n_heads: 2}, "
        f"tokenizer: {checkpoints['bert']}}}"
    )
    # A checkpoint that lacks its head: it is drawn, as training draws it.
    weights = load_file(f"{checkpoints['student']}/model.safetensors")
    shutil.copytree(checkpoints["student"], "headless")
    kept = {key: value for key, value in weights.items() if "classifier" not in key}
    save_file(kept, "headless/model.safetensors", metadata={"format": "pt"})
    for override in ([], [scratch], ["student.model=headless"]):
        checked = load_recipe(recipe, override)
        torch.manual_seed(77)  # what was drawn before must not matter
        report = attention_recipe(Setup(checked))
        first = Setup(load_recipe(recipe, [*override, "training.output_dir=other"])).trainer()
        teacher = Teacher.from_pretrained(checkpoints["bert"])
        view = TokenView(bert_tokenizer, 64)
        expected = layer_similarity(first.model, view, teacher, held_out["text"])
        torch.testing.assert_close(report.similarities[0].before, expected, atol=1e-5, rtol=0)
        trained = DistilBertForSequenceClassification.from_pretrained("run")
        expected = layer_similarity(trained, view, teacher, held_out["text"])
        torch.testing.assert_close(report.similarities[0].cka, expected, atol=1e-5, rtol=0)
        assert not torch.allclose(report.similarities[0].before, expected, atol=1e-3)
        assert 0 < report.similarities[0].by_chance < 1


def test_pairs_need_two_texts(run, recipe, rows):
    rows.map(lambda row: {"second": row["text"][::-1]}).to_json("train.jsonl")
    pairs = ["data.text_columns=[text, second]", "data.files={train: train.jsonl}"]
    page = str(attention_recipe(Setup(load_recipe(recipe, pairs))))
    assert f"    {rows['text'][0]}\n    {rows['text'][0][::-1]}\n" in page
    assert "The student was trained on these rows." in page
    assert run(recipe, *pairs, "--text", "a film", "--text", "a plot").exit_code == 0
    assert "    a film\n    a plot\n" in Path("run/attention.md").read_text()
    refused = run(recipe, *pairs, "--text", "a film")
    assert refused.exit_code == 2 and "2 text column(s)" in refused.stderr


def test_what_cannot_be_shown_ends_with_its_code_and_nothing_written(run, recipe):
    for arguments, code, message in (
        (["--layers", "1,x"], 2, "--layers: expected numbers"),
        (["--layers", "7"], 2, "No model has layers [7]"),
        (["--head", "3"], 2, "No model has head 3"),
        (["--split", "test"], 3, "there is no test split"),
        (["--rows", "2"], 2, "--rows"),
        (["losses.temperature=0"], 2, "losses.temperature"),
        (["training.output_dir=nowhere"], 3, "There is no trained student in"),
        (["student={from_teacher: bert, layers: 2}"], 2, "the recipe starts one with 2 of 32"),
    ):
        done = run(recipe, *arguments)
        assert done.exit_code == code, (arguments, done.output, done.exception)
        assert message in done.stderr
    assert not Path("run/attention.md").exists() and not Path("run/attention.png").exists()
    shutil.rmtree("run")
    assert run(recipe).exit_code == 3
