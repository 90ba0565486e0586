"""Images: read and known by their pixels, each model with its own processor, trained, judged, asked and exported by one path."""

from __future__ import annotations

import io
import json

import datasets
import numpy as np
import pytest
import torch
from digit_images import LABELS, digit_rows, image_checkpoints, image_recipe, make_resnet, make_vit
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageClassification, pipeline
from typer.testing import CliRunner

from hf_distill import (
    DistillationArguments,
    Ensemble,
    MultiTeacherDistillationTrainer,
    Teacher,
    evaluate_ensemble,
)
from hf_distill.cli import app
from hf_distill.errors import ConfigurationError, DataError, UnsafeFileError
from hf_distill.recipe import Setup, load_recipe
from hf_distill.recipe.setup import write_recipe
from hf_distill.recipe.summary import recipe_summary
from hf_distill.rows.columns import Ragged, indexed
from hf_distill.rows.images import IMAGES, Augmentation, SeenThisEpoch, read_image
from hf_distill.rows.preparing import distinct_rows, is_prepared, prepare_dataset
from hf_distill.rows.views import text_batches
from hf_distill.runs.train import train_recipe
from hf_distill.tasks import build_task

TASK = "image-classification"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return image_checkpoints(tmp_path_factory.mktemp("images"))


def image(seed: int = 0, size: tuple[int, int] = (6, 5)) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), np.uint8))


def saved(given: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    given.save(file, kind)
    return file.getvalue()


# ---- Rows ----


def test_an_image_is_known_by_its_pixels_however_it_is_given(tmp_path):
    one, path = image(), tmp_path / "one.bmp"
    path.write_bytes(saved(one, "bmp"))
    ways = [
        one,
        saved(one, "png"),
        {"bytes": saved(one, "png"), "path": None},
        str(path),
        path,
        np.asarray(one),
    ]
    ids = {IMAGES.example_id([IMAGES.read(way)]) for way in ways}
    assert len(ids) == 1 and 0 <= ids.pop() < 2**63
    flat = Image.fromarray(np.asarray(one).reshape(6, 5, 3))  # the same bytes in another shape
    assert IMAGES.example_id([IMAGES.read(flat)]) != IMAGES.example_id([IMAGES.read(one)])
    grey = one.convert("L")
    assert read_image(IMAGES.read(grey)).tobytes() == grey.convert("RGB").tobytes()
    turned = one.copy()
    exif = turned.getexif()
    exif[0x0112] = 6  # lies on its side
    file = io.BytesIO()
    turned.save(file, "png", exif=exif)
    assert read_image(IMAGES.read(file.getvalue())).size == (5, 6)
    assert IMAGES.told([IMAGES.read(one)]) == ("image of 6 x 5 pixels",)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "found None, expected an image"),
        (b"no image", "found 8 bytes that are no image"),
        ("/nowhere.png", "'/nowhere.png', which cannot be read"),
        (3, "found 3, expected an image"),
    ],
)
def test_what_is_no_image_is_said(value, said):
    with pytest.raises(ValueError, match="found") as raised:
        IMAGES.read(value)
    assert said in str(raised.value)


def test_rows_keep_files_and_views_make_what_the_processor_makes(made):
    rows, (_, processor) = digit_rows(5), make_vit(LABELS)
    view = IMAGES.plain_view(processor, None)
    reader = build_task(TASK).label_reader("label", LABELS)
    prepared = prepare_dataset(
        rows,
        text_columns=["image"],
        labels=reader,
        student_view=view,
        teacher_views={"t": view},
        content=IMAGES,
    )
    assert is_prepared(prepared, ["image"]) and not is_prepared(rows, ["image"])
    assert is_prepared(prepared.select([1, 2]).shuffle(seed=0), ["image"])
    columns = indexed(prepared).__getitems__([3, 0])
    assert isinstance(columns["image_file"], Ragged) and columns["image_file"].values.dtype == np.uint8
    expected = processor([rows[i]["image"].convert("RGB") for i in (3, 0)], return_tensors="pt")
    assert torch.equal(view.collate(columns, torch.zeros(2))["pixel_values"], expected["pixel_values"])
    assert columns["labels"].tolist() == [rows[3]["label"], rows[0]["label"]]
    twice = datasets.concatenate_datasets([rows, rows])
    assert distinct_rows(twice, ["image"], IMAGES).ids.tolist() == prepared["example_id"][:]
    with pytest.raises(
        DataError, match="Row 1 of the dataset, column 'image': found None, expected an image: remove"
    ):
        broken = datasets.Dataset.from_dict(
            {"image": [image(), None]}, datasets.Features(image=datasets.Image())
        )
        prepare_dataset(
            broken, text_columns="image", labels=reader, student_view=view, teacher_views={}, content=IMAGES
        )


def test_processors_that_differ_have_other_keys_and_sizes_that_differ_are_said():
    (_, vit), (_, resnet) = make_vit(LABELS), make_resnet(LABELS)
    views = [
        IMAGES.plain_view(processor, None)
        for processor in (vit, make_vit(LABELS)[1], make_vit(LABELS, 24)[1], resnet)
    ]
    assert views[0].key == views[1].key and len({view.key for view in views}) == 3
    vit.do_resize = False
    with pytest.raises(DataError, match="The images of a batch have 2 sizes"):
        list(
            text_batches(
                IMAGES.plain_view(vit, None), [[IMAGES.read(image()), IMAGES.read(image(size=(9, 9)))]], 2
            )
        )


# ---- Crops and flips ----


def test_a_crop_moves_the_image_and_a_flip_turns_it():
    one = image(size=(8, 8))
    pixels, seen = np.asarray(one), set()
    for seed in range(200):
        made = np.asarray(Augmentation(crop=2, flip=True)(one, np.random.default_rng(seed)))
        padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)))
        flips = [(padded[y : y + 8, x : x + 8], x, y) for x in range(5) for y in range(5)]
        found = [
            (x, y, turned)
            for part, x, y in flips
            for turned in (False, True)
            if np.array_equal(made, part[:, ::-1] if turned else part)
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) == 50  # every place, both ways
    assert Augmentation(crop=0.25)(one, np.random.default_rng(3)).size == (8, 8)
    with pytest.raises(ConfigurationError, match="does nothing without crop and flip"):
        Augmentation()


def test_student_and_teachers_see_one_image_and_another_in_each_epoch():
    seen = SeenThisEpoch(Augmentation(crop=3, flip=True), seed=5)
    (_, vit), file = make_vit(LABELS), IMAGES.read(image(size=(16, 16)))
    one, other = (IMAGES.plain_view(vit, None).augmented(seen) for _ in range(2))

    def pixels(view, row=7):
        return view.collate({"image_file": Ragged.of([np.frombuffer(file, np.uint8)])}, torch.tensor([row]))[
            "pixel_values"
        ]

    first = pixels(one)
    assert torch.equal(first, pixels(other)) and not torch.equal(first, pixels(one, row=8))
    seen.begin_epoch(1)
    assert not torch.equal(first, pixels(one))
    again = SeenThisEpoch(Augmentation(crop=3, flip=True), seed=5)
    assert torch.equal(first, pixels(IMAGES.plain_view(vit, None).augmented(again)))


def arguments(folder, **options):
    return DistillationArguments(
        output_dir=str(folder), use_cpu=True, per_device_train_batch_size=8, report_to="none", disable_tqdm=True,
        learning_rate=0.01, dataloader_pin_memory=False, **options,
    )  # fmt: skip


def test_a_training_with_crops_goes_on_as_it_would_have(made, tmp_path):
    teachers = [Teacher.from_pretrained(made[name], task=TASK) for name in ("vit", "resnet")]
    seen = []

    def trainer():
        trainer = MultiTeacherDistillationTrainer(
            model=made["student"], teachers=teachers, task=TASK, train_dataset=digit_rows(24), augment={"crop": 2, "flip": True},
            args=arguments(tmp_path / "run", max_steps=5, save_steps=2, logging_steps=1),
        )  # fmt: skip
        inner = trainer.compute_loss

        def watched(model, inputs, *args, **options):
            views = inputs["teacher_views"]
            seen.append((inputs["pixel_values"], views["resnet"]["pixel_values"], inputs["example_id"]))
            return inner(model, inputs, *args, **options)

        trainer.compute_loss = watched
        return trainer

    whole = trainer()
    whole.train()
    # Student and second teacher have processors that are set alike, so they see the same pixels.
    assert all(torch.equal(own, theirs) for own, theirs, _ in seen) and len(seen) == 5
    by_row = [
        {int(i): own[k] for own, _, ids in part for k, i in enumerate(ids)} for part in (seen[:3], seen[3:])
    ]
    again = by_row[0].keys() & by_row[1].keys()
    assert len(by_row[0]) == 24 and again
    assert sum(torch.equal(by_row[0][i], by_row[1][i]) for i in again) <= len(again) // 4
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for key, value in whole.student.state_dict().items():
        assert torch.equal(value, resumed.student.state_dict()[key]), key
    loader = whole.get_eval_dataloader(digit_rows(8))  # evaluation sees images as they are
    plain = teachers[1].view.collate(indexed(loader.dataset.rows).__getitems__(range(8)), torch.zeros(8))
    assert torch.equal(next(iter(loader))["pixel_values"], plain["pixel_values"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "workers",
    [{"dataloader_num_workers": 2}, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}],
)
def test_a_loader_s_workers_see_the_same_images(made, tmp_path, workers):
    losses = []
    for more in ({}, workers):
        trainer = MultiTeacherDistillationTrainer(
            model=made["student"], teachers=[made["vit"]], task=TASK, train_dataset=digit_rows(24), augment={"crop": 2, "flip": True},
            args=arguments(tmp_path / "run", max_steps=7, save_strategy="no", logging_steps=1, **more),
        )  # fmt: skip
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1] and len(losses[0]) == 7  # three epochs, of which a worker may outlive each


def test_augmentation_that_cannot_be_is_refused(made, tmp_path, checkpoints, rows):
    options = {
        "model": made["student"], "teachers": [made["vit"]], "task": TASK, "train_dataset": digit_rows(8),
        "args": arguments(tmp_path / "run"), "augment": Augmentation(flip=True),
    }  # fmt: skip
    with pytest.raises(ConfigurationError, match="a cache would hold none"):
        MultiTeacherDistillationTrainer(**options, cache_dir=tmp_path / "cache")
    from hf_distill import cache_teacher_outputs

    cached = cache_teacher_outputs([made["vit"]], digit_rows(8), cache_dir=tmp_path / "cache", task=TASK)
    with pytest.raises(ConfigurationError, match="outputs are read from a cache"):
        MultiTeacherDistillationTrainer(**{**options, "teachers": cached})
    with pytest.raises(ConfigurationError, match="before the student's own view reads them"):
        MultiTeacherDistillationTrainer(**options, data_collator=lambda rows: rows)
    text = {
        "model": checkpoints["student"],
        "teachers": [checkpoints["bert"]],
        "task": "text-classification",
        "train_dataset": rows,
    }
    with pytest.raises(ConfigurationError, match="cannot be augmented, which is for images"):
        MultiTeacherDistillationTrainer(**{**options, **text})


# ---- What does not fit ----


def test_what_does_not_fit_is_refused(made, tmp_path, checkpoints, bert_tokenizer):
    vit, processor = make_vit(LABELS)
    with pytest.raises(DataError, match="cannot be loaded as AutoModelForImageClassification"):
        Teacher.from_pretrained(checkpoints["bert"], task=TASK)
    with pytest.raises(DataError, match="is no image processor"):
        Teacher(vit, bert_tokenizer, name="vit", task=TASK)
    with pytest.raises(DataError, match="Teacher 'vit': a forward of one image fails: ValueError"):
        Teacher(vit, make_vit(LABELS, 24)[1], name="vit", task=TASK)
    with pytest.raises(ConfigurationError, match="max_length is 32, but images have no length"):
        Teacher(vit, processor, name="vit", task=TASK, max_length=32)
    vit.save_pretrained(tmp_path / "alone")
    with pytest.raises(DataError, match="no image processor can be loaded"):
        Teacher.from_pretrained(str(tmp_path / "alone"), task=TASK)
    options = {
        "model": made["student"],
        "teachers": [made["vit"]],
        "task": TASK,
        "train_dataset": digit_rows(8),
    }
    with pytest.raises(ConfigurationError, match="Hidden losses compare the states of tokens"):
        MultiTeacherDistillationTrainer(**options, args=arguments(tmp_path), hidden_losses=["hidden_mse"])
    with pytest.raises(ConfigurationError, match="pass the student's image processor"):
        MultiTeacherDistillationTrainer(**{**options, "model": vit}, args=arguments(tmp_path))
    with pytest.raises(DataError, match="name the one column that holds the images"):
        MultiTeacherDistillationTrainer(**options, args=arguments(tmp_path), text_columns=["image", "label"])


# ---- The whole path ----


def test_the_whole_path_of_a_recipe(made, tmp_path):
    path = image_recipe(tmp_path, made)
    train_recipe(Setup(load_recipe(path)))
    out = tmp_path / "run"
    report = json.loads((out / "report.json").read_text())
    assert report["task"] == TASK and {"student", "ensemble", "teacher:vit"} <= set(report["systems"])
    assert report["differences"][0]["measure"] == "accuracy"
    assert "image of 8 x 8 pixels" in (out / "report.json").read_text()
    student = AutoModelForImageClassification.from_pretrained(out)
    assert list(student.config.id2label.values()) == list(LABELS)
    rows = digit_rows(4, 72)
    asked = pipeline(TASK, model=str(out))
    assert len(asked(rows[0]["image"])) == 3
    # Asked as the run is: by paths, by files of rows, with its teachers; the same as the pipeline says.
    for i in range(2):
        rows[i]["image"].save(tmp_path / f"{i}.png")
    command = [
        "predict",
        str(out),
        "--text",
        str(tmp_path / "0.png"),
        "--text",
        str(tmp_path / "1.png"),
        "--with-teachers",
    ]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    answers = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    for i, answer in enumerate(answers):
        expected = {one["label"]: one["score"] for one in asked(rows[i]["image"])}
        assert answer["image"] == str(tmp_path / f"{i}.png") and set(answer["teachers"]) == {
            "ensemble",
            "vit",
            "resnet",
        }
        assert answer["probabilities"] == pytest.approx(expected, abs=1e-5)
    run = CliRunner().invoke(app, ["predict", str(out), "--file", str(tmp_path / "test.parquet")])
    assert run.exit_code == 0 and run.output.count("image of 8 x 8 pixels") == 24, run.output
    run = CliRunner().invoke(app, ["predict", str(out), "--text", "nowhere.png"])
    assert run.exit_code == 3 and "which cannot be read" in run.output
    # The cache holds what the teachers say live.
    live = evaluate_ensemble([made["vit"], made["resnet"]], rows, student=str(out), task=TASK)
    assert set(live.systems) == {"student", "teacher:vit", "teacher:resnet", "ensemble", "student+teachers"}
    run = CliRunner().invoke(app, ["card", str(out)])
    assert run.exit_code == 0, run.output
    card = (out / "README.md").read_text()
    assert (
        f"pipeline_tag: {TASK}" in card
        and f'pipeline("{TASK}"' in card
        and "type: image-classification" in card
    )
    run = CliRunner().invoke(app, ["attention", str(path)])
    assert run.exit_code == 2 and "models of images are not known to have any" in run.output
    ensemble = Ensemble([made["vit"], made["resnet"]], task=TASK, label_names=LABELS)
    assert ensemble(rows[0]["image"])[0]["label"] in LABELS and len(ensemble([rows[0]["image"]] * 3)) == 3


def test_rows_of_a_file_name_images_by_their_paths(made, tmp_path):
    path = image_recipe(tmp_path, made)
    (tmp_path / "pictures").mkdir()
    rows, lines = digit_rows(6), []
    for i, row in enumerate(rows):
        row["image"].save(tmp_path / "pictures" / f"{i}.png")
        lines.append(f"pictures/{i}.png,{LABELS[row['label']]}")
    (tmp_path / "train.csv").write_text("\n".join(["image,label", *lines]))
    setup = Setup(load_recipe(path, [f"data.files.train={tmp_path / 'train.csv'}"]))
    found = distinct_rows(setup.rows["train"], ["image"], IMAGES).ids
    assert found.tolist() == distinct_rows(rows, ["image"], IMAGES).ids.tolist()
    rows[1]["image"].save(
        tmp_path / "pictures" / "0.png"
    )  # another picture under the same name is another row
    setup = Setup(load_recipe(path, [f"data.files.train={tmp_path / 'train.csv'}"]))
    assert distinct_rows(setup.rows["train"], ["image"], IMAGES).ids[0] == found[1]
    (tmp_path / "train.csv").write_text("image,label\nnowhere.png,one\n")
    run = CliRunner().invoke(app, ["train", str(path), f"data.files.train={tmp_path / 'train.csv'}"])
    assert run.exit_code == 3 and "line 2, column 'image': found" in " ".join(run.output.split())


def test_a_recipe_s_augmentation(made, tmp_path):
    path = image_recipe(tmp_path, made, data={"augment": {"crop": 2, "flip": True}})
    run = CliRunner().invoke(app, ["validate", str(path)])
    assert run.exit_code == 2 and "data.augment: it shows another image in every epoch" in " ".join(
        run.output.split()
    )
    recipe = load_recipe(path, ["teachers.cache_dir=null"])
    assert "crops by 2 pixels and flips, once per row and epoch" in recipe_summary(recipe)
    assert Setup(recipe).augment == Augmentation(2, True) and recipe.data.text_columns == ("image",)
    run = CliRunner().invoke(app, ["validate", str(path), "data.augment={}"])
    assert run.exit_code == 2 and "does nothing without crop and flip" in run.output


@pytest.mark.slow
def test_a_search_an_audit_and_exports(made, tmp_path):
    path = image_recipe(tmp_path, made)
    run = CliRunner().invoke(app, ["validate", str(path), "--load"])
    assert run.exit_code == 0 and "0 zero" in run.output, run.output
    run = CliRunner().invoke(app, ["cache", str(path)])
    assert run.exit_code == 0, run.output
    run = CliRunner().invoke(
        app, ["search", str(path), "--trials", "2", "--output", str(tmp_path / "search")]
    )
    assert run.exit_code == 0 and "nll" in (tmp_path / "search" / "search.md").read_text(), run.output
    run = CliRunner().invoke(app, ["audit", str(path), "--output", str(tmp_path / "audit")])
    assert run.exit_code == 0 and (tmp_path / "audit" / "audit.md").is_file(), run.output
    train_recipe(Setup(load_recipe(path)))
    for kind in ("onnx", "int8"):
        run = CliRunner().invoke(app, ["export", str(tmp_path / "run"), "--format", kind])
        assert run.exit_code == 0, run.output
        report = json.loads((tmp_path / "run" / kind / "export.json").read_text())
        assert report["inputs"] == ["pixel_values"] and "accuracy" in report["systems"][kind]["metrics"]
        assert kind != "onnx" or report["agreement"] == 1.0
        run = CliRunner().invoke(
            app, ["predict", str(tmp_path / "run"), f"--{kind}", "--file", str(tmp_path / "test.parquet")]
        )
        assert run.exit_code == 0 and run.output.count('"label"') == 24, run.output


def test_models_that_are_not_of_transformers(made, tmp_path):
    """recipes/cifar_resnets.py: plain weights become a folder, which answers as the plain module does; a recipe registers it."""
    from recipes.cifar_resnets import CifarResNet, convert

    torch.manual_seed(0)
    plain, pixels = CifarResNet(14, len(LABELS), width=4).eval(), torch.rand(3, 3, 32, 32)
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    source = tmp_path / "plain"
    source.mkdir()
    save_file(plain.state_dict(), source / "model.safetensors")
    about = {
        "depth": 14,
        "width": 4,
        "labels": list(LABELS),
        "normalize_mean": [0.4, 0.5, 0.6],
        "normalize_std": [0.2, 0.3, 0.4],
    }
    (source / "config.json").write_text(json.dumps(about))
    convert(source, tmp_path / "resnet14")
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path / "resnet14").eval()
    assert torch.equal(loaded(pixels).logits, plain(pixels))
    teacher = Teacher.from_pretrained(str(tmp_path / "resnet14"), task=TASK)
    assert teacher.label_names == LABELS
    shown = image(size=(32, 32))
    (batch,) = text_batches(teacher.view, [[IMAGES.read(shown)]], 1)
    mean, std = (torch.tensor(about[f"normalize_{key}"]).view(3, 1, 1) for key in ("mean", "std"))
    by_hand = (torch.from_numpy(np.asarray(shown)).permute(2, 0, 1) / 255 - mean) / std
    assert torch.allclose(batch["pixel_values"][0], by_hand, atol=1e-6)
    student = {
        "model": None,
        "config": {"model_type": "cifar_resnet", "depth": 8, "width": 4},
        "processor": made["student"],
    }
    path = image_recipe(tmp_path, made, student=student)
    path.write_text(f"register_models: recipes.cifar_resnets:register\n{path.read_text()}")
    recipe = load_recipe(path)
    model, processor = Setup(recipe).student(seed=0)
    assert (
        model.config.depth == 8
        and model.config.num_labels == 3
        and "pixel_values" in processor.model_input_names
    )
    (tmp_path / "kept").mkdir()
    stored = write_recipe(recipe, tmp_path / "kept")
    with pytest.raises(UnsafeFileError, match="recipes.cifar_resnets:register"):
        load_recipe(stored)
    assert load_recipe(stored, trust=["recipes.cifar_resnets:register"]) == recipe
    path.write_text(path.read_text().replace("cifar_resnets:register", "cifar_resnets:regster"))
    with pytest.raises(ConfigurationError, match="register_models"):
        load_recipe(path)
