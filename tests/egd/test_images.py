"""The image domain: data, energies against closed forms, and the product, a recipe in and a run folder out."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from egd.cli import main as cli
from egd.errors import UserError
from egd.experiments.images.data import ImageSet, digits, folder, make_context
from egd.experiments.images.energies import Brightness, ClassProbability, Inpainting
from egd.experiments.images.evaluation import Weighted
from egd.experiments.images.figure import mosaic
from egd.experiments.images.model import shown

RECIPE = """
experiment: images
tasks: {digits: {}}
steps: 3
unet: {widths: [8, 8], steps: 6, batch: 8}
classifier: {width: 4, steps: 6, batch: 8}
calibration: {samples: 16, grid: 3}
targets:
  class: {energy: class_probability, betas: [1, 2]}
  inpainting: {energy: {name: inpainting, hide: top}}
estimators:
  dps: {guidance: dps}
  support: {guidance: {name: support_samples, samples: 8}, rule: rescaled, clip_x0: false}
evaluation: {samples: 10, reference: 20, draws: 50, projections: 8}
checkpoint_every: 3
log_every: 2
budgets: {longer: {unet: {steps: 8}}}
"""
RUN = Path("digits") / "seed-0"


@pytest.fixture(autouse=True)
def float32(float64: None) -> None:
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def run(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """run('--set', ...) -> the result of egd run on the recipe."""
    monkeypatch.setattr(cli.console, "width", 200)
    monkeypatch.setattr(cli.errors, "width", 200)
    return lambda *extra: CliRunner().invoke(
        cli.app, ["run", str(recipe), "--out", str(tmp_path / "out"), "--device", "cpu", *map(str, extra)]
    )


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / RUN / "summary.json").read_text())
    return found


def without_seconds(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in result.items() if k != "seconds"} for result in results]


# -- data ----------------------------------------------------------------------------------------------------------------


def test_digits_lie_in_range_and_are_padded_with_black() -> None:
    small, wide = digits(), digits(16)
    assert small.images.shape == (1797, 1, 8, 8) and len(small.classes) == 10
    assert (float(small.images.min()), float(small.images.max())) == (-1, 1)
    assert torch.equal(wide.images[:, :, 4:12, 4:12], small.images)
    assert bool((wide.images[:, :, :4] == -1).all())
    with pytest.raises(UserError, match="would cut them"):
        digits(4)


def test_a_folder_of_images_is_read_with_its_classes(tmp_path: Path) -> None:
    for name, value in (("dark", 0), ("light", 255)):
        (tmp_path / name).mkdir()
        array = np.full((10, 6, 3), value, dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / name / "a.png")
    found = folder(tmp_path, size=4)
    assert found.images.shape == (2, 3, 4, 4) and found.classes == ("dark", "light")
    assert found.images.flatten(1).mean(1).tolist() == [-1, 1] and found.labels is not None
    assert found.labels.tolist() == [0, 1]
    assert folder(tmp_path / "dark", size=4, channels=1).images.shape == (1, 1, 4, 4)
    assert folder(tmp_path / "dark").labels is None
    (tmp_path / "dark" / "b.png").write_text("not a picture")
    with pytest.raises(UserError, match="not an image"):
        folder(tmp_path)
    with pytest.raises(UserError, match="no images below"):
        folder(tmp_path / "nowhere")


RAMP = np.linspace(0, 1, 16 * 16).reshape(16, 16)


def save(picture: Any, path: Path, **settings: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **settings)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("dtype", "top", "suffix"), [("u1", 255, "png"), ("u2", 65535, "png"), (">u2", 65535, "tif")])
def test_every_depth_is_scaled_to_its_own_range(tmp_path: Path, dtype: str, top: int, suffix: str, channels: Any) -> None:
    save(Image.fromarray((top * RAMP).round().astype(dtype)), tmp_path / f"a.{suffix}")
    (image,) = folder(tmp_path, size=16, channels=channels).images
    want = torch.from_numpy(2 * RAMP - 1).float().expand(channels, 16, 16)
    torch.testing.assert_close(image, want, atol=1.01 / top, rtol=0)
    (small,) = folder(tmp_path, size=4, channels=channels).images
    assert float(small.mean()) == pytest.approx(0, abs=1e-2) and float(small.abs().max()) < 1


@pytest.mark.parametrize(("bits", "white_is_zero"), [(12, False), (16, True), (16, False)])
def test_a_tiff_says_what_its_deepest_values_mean(tmp_path: Path, bits: int, white_is_zero: bool) -> None:
    """Pillow reads values as they are stored: 12 bits reach 4095, and white may be 0."""
    top = 2**bits - 1
    values = (top * (1 - RAMP if white_is_zero else RAMP)).round().astype(int)
    tags = [(256, 16), (257, 16), (258, bits), (259, 1), (262, 0 if white_is_zero else 1), (273, 8), (277, 1), (278, 16)]
    data = values.astype("<u2").tobytes()
    if bits == 12:  # two values in three bytes
        data = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in values.reshape(-1, 2).tolist())
    table = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    (tmp_path / "a.tif").write_bytes(struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + table + bytes(4))
    (image,) = folder(tmp_path, size=16, channels=1).images
    torch.testing.assert_close(image[0], torch.from_numpy(2 * RAMP - 1).float(), atol=1.01 / top, rtol=0)


@pytest.mark.parametrize("kind", ["f4", "i4"])
def test_pixels_of_no_known_range_are_refused(tmp_path: Path, kind: str) -> None:
    save(Image.fromarray((255 * RAMP).astype(kind)), tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif has pixels of .*, of no known range; save it with 8 or 16 bits"):
        folder(tmp_path, size=4)


def test_modes_of_colour_give_the_colours_that_are_seen(tmp_path: Path) -> None:
    red, clear = (255, 0, 0), (0, 0, 0, 0)
    save(Image.new("RGB", (4, 4), red), tmp_path / "a.png")
    save(Image.new("RGB", (4, 4), red).convert("P"), tmp_path / "b.png")
    save(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), tmp_path / "c.tif")
    save(Image.new("RGBA", (4, 4), (*red, 255)), tmp_path / "d.png")
    save(Image.new("RGBA", (4, 4), clear), tmp_path / "e.png")  # black, and not seen: white
    save(Image.new("RGBA", (4, 4), (255, 0, 0, 51)), tmp_path / "f.png")  # a fifth of red on white
    save(Image.new("LA", (4, 4), (0, 0)), tmp_path / "g.png")
    save(Image.new("1", (4, 4), 1), tmp_path / "h.png")
    colours = folder(tmp_path, size=2).images[:, :, 0, 0]
    torch.testing.assert_close(colours[:4], torch.tensor([[1.0, -1, -1]] * 4))
    torch.testing.assert_close(colours[5], torch.tensor([1, 0.6, 0.6]))
    assert torch.equal(colours[[4, 6, 7]], torch.ones(3, 3))


def test_a_photo_is_turned_as_it_was_held(tmp_path: Path) -> None:
    half = np.zeros((4, 4), np.uint8)
    half[:, :2] = 255  # the left half is light; turned by 90 degrees clockwise it is the upper one
    exif = Image.Exif()
    exif[0x0112] = 6
    save(Image.fromarray(half), tmp_path / "a.png", exif=exif)
    (image,) = folder(tmp_path, size=4, channels=1).images
    assert image[0, :, 0].tolist() == [1, 1, -1, -1] and image[0, 0].tolist() == [1, 1, 1, 1]


def test_hidden_files_and_folders_are_left_out_and_links_followed(tmp_path: Path) -> None:
    grey = Image.new("L", (4, 4), 100)
    for name in ("cat/a.PNG", "dog/a.png", ".thumbnails/a.png", "cat/.a.png", "__MACOSX/a.png"):
        save(grey, tmp_path / "set" / name)
    (tmp_path / "set" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "set" / "cat" / "folder.png").mkdir()
    save(grey, tmp_path / "elsewhere" / "a.png")
    (tmp_path / "set" / "owl").symlink_to(tmp_path / "elsewhere")
    found = folder(tmp_path / "set", size=4)
    assert found.classes == ("cat", "dog", "owl") and len(found) == 3


@pytest.mark.parametrize(
    ("link", "to", "said"),
    [("set/b.png", "set/a.png", "are one, by a link"), ("set/up", "set", "are one"), ("set/b.png", "gone", "leads nowhere")],
)
def test_an_image_that_is_there_twice_or_not_at_all_is_refused(tmp_path: Path, link: str, to: str, said: str) -> None:
    save(Image.new("L", (4, 4)), tmp_path / "set" / "a.png")
    (tmp_path / link).symlink_to(tmp_path / to)
    with pytest.raises(UserError, match=said):
        folder(tmp_path / "set", size=4)


def test_folders_that_may_be_one_class_are_refused(tmp_path: Path) -> None:
    for name in ("Cat", "cat"):
        save(Image.new("L", (4, 4)), tmp_path / name / "a.png")
    with pytest.raises(UserError, match="'Cat' and 'cat' would be two classes"):
        folder(tmp_path, size=4)


def test_postscript_is_no_image_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *given, **settings: started.append(given))
    header = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "a.png").write_bytes(header)
    with pytest.raises(UserError, match="is not an image"):
        folder(tmp_path, size=4)
    assert not started


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.gif", "a.bmp", "a.webp"])
def test_a_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    save(Image.fromarray(noise), tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    for share in (0.0, 0.02, 0.5, 0.9):
        (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match=f"{name} is not an image that can be read"):
            folder(tmp_path, size=8)


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(Image.new("L", (40, 40)), tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match=r"a\.png is not an image that can be read: .*1600 pixels"):
        folder(tmp_path, size=8)


def test_a_split_shares_no_image() -> None:
    whole = ImageSet(torch.arange(10.0).reshape(10, 1, 1, 1))
    one, other = whole.split(0.7, torch.Generator().manual_seed(0))
    assert len(one) == 7 and sorted(torch.cat([one.images, other.images]).flatten().tolist()) == list(range(10))


# -- energies ------------------------------------------------------------------------------------------------------------


def test_a_classifier_gives_logits_and_not_something_else() -> None:
    x, c = torch.zeros(2, 1, 4, 4), {"label": torch.tensor([0, 1])}
    known = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    assert ClassProbability(lambda x: known.log())(x, c).exp().tolist() == pytest.approx([1 / 0.9, 1 / 0.8])
    for wrong, said in ((known, "probabilities"), (known[:, :1], r"\(2, 1\)"), (known[0], r"\(2,\)"), (known[:1], r"\(1, 2\)")):
        with pytest.raises(ValueError, match=said):
            ClassProbability(lambda x, wrong=wrong: wrong)(x, c)


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "torch.uint8"),
        (torch.full((2, 1, 4, 4), 255.0), "values from 255 to 255"),
        (torch.full((2, 1, 4, 4), torch.nan), "values from nan"),
        (torch.zeros(2, 1, 1, 4), "has the shape"),  # would broadcast
        (torch.zeros(3, 1, 4, 4), "has the shape"),
    ],
)
def test_a_measured_image_is_on_the_scale_of_x0(image: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Inpainting()(torch.zeros(2, 1, 4, 4), {"image": image})


@pytest.mark.parametrize(("hide", "size"), [("centre", 3), ("right", 1)])
def test_a_mask_without_a_known_or_a_hidden_pixel_is_refused(hide: Any, size: int) -> None:
    x = torch.zeros(1, 1, size, size)
    with pytest.raises(ValueError, match=f"hide '{hide}' leaves none of the {size} x {size} pixels"):
        Inpainting(hide=hide)(x, {"image": x})


def test_one_image_has_no_spread_of_brightness() -> None:
    assert Brightness().measure(torch.zeros(1, 1, 2, 2), None, None) == {"brightness": 0.5, "std": 0.0}


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (torch.full((4, 1, 4, 4), 200.0), None, r"expected images in \[-1, 1\], got values from 200"),
        (torch.zeros(4, 1, 4, 4, dtype=torch.uint8), None, "got torch.uint8"),
        (torch.zeros(4, 1, 4, 8), None, r"expected \(N, C, S, S\)"),
        (torch.zeros(4, 1, 4, 4), torch.tensor([0, 1, 0]), "labels: expected 4 of int64"),
        (torch.zeros(4, 1, 4, 4), torch.tensor([0, 1, 0, 2]), "labels: expected 0 to 1"),
    ],
)
def test_a_set_of_images_on_another_scale_or_with_other_labels_is_refused(images: Tensor, labels: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ImageSet(images, labels, ("a", "b")).check()


def test_infinite_samples_are_not_shown_as_white_ones() -> None:
    latents = torch.tensor([-3.0, -0.5, 0.25, 2.0, torch.inf, -torch.inf])
    assert shown(latents).tolist() == [-1, -0.5, 0.25, 1, torch.inf, -torch.inf]


def test_energies_are_minus_log_likelihoods() -> None:
    x0 = 2 * torch.rand(5, 1, 4, 4) - 1
    image = torch.rand(5, 1, 4, 4)
    bright = torch.distributions.Normal(0.4, 0.05)
    want = bright.log_prob(torch.tensor(0.4)) - bright.log_prob((x0.mean((1, 2, 3)) + 1) / 2)
    torch.testing.assert_close(Brightness(0.4, 0.05)(x0), want)
    right = torch.distributions.Normal(image[..., 2:], 0.3)
    want = (right.log_prob(image[..., 2:]) - right.log_prob(x0[..., 2:])).sum((1, 2, 3))
    torch.testing.assert_close(Inpainting("left", 0.3)(x0, {"image": image}), want)
    logits = torch.randn(5, 3)
    label = torch.tensor([0, 2, 1, 1, 0])
    want = -logits.softmax(1)[torch.arange(5), label].log()
    torch.testing.assert_close(ClassProbability(lambda x: logits)(x0, {"label": label}), want)
    torch.testing.assert_close(ClassProbability(lambda x: logits, label=2)(x0), -logits.log_softmax(1)[:, 2])


@pytest.mark.parametrize("hide", ["left", "right", "top", "bottom", "centre", "random"])
def test_what_is_hidden_is_neither_felt_nor_shown(hide: Any) -> None:
    energy, image = Inpainting(hide), torch.zeros(2, 1, 8, 8)
    hidden = energy.known(image)[0, 0] == 0
    assert 0 < int(hidden.sum()) < 64
    assert energy((hidden.float()).expand(2, 1, 8, 8), {"image": image}).tolist() == [0, 0]
    assert torch.equal(energy.shown({"image": image})[0, 0].isnan(), hidden)
    numbers = energy.measure(0.5 * hidden.float().expand(2, 1, 8, 8), {"image": image}, None)
    assert numbers == {"known_rmse": 0, "hidden_rmse": 0.5}


def test_energies_measure_what_they_want() -> None:
    x0 = torch.cat([torch.zeros(3, 1, 2, 2), torch.ones(1, 1, 2, 2)])
    numbers = Brightness().measure(x0, None, None)
    assert numbers["brightness"] == pytest.approx(0.625) and numbers["std"] == pytest.approx(0.25)
    judge = lambda x: torch.nn.functional.one_hot(torch.tensor([0, 1, 1, 2]), 3).float()  # noqa: E731
    assert ClassProbability(judge, label=1).measure(x0, None, judge) == {"accuracy": 0.5}
    with pytest.raises(ValueError, match="context with 'label'"):
        ClassProbability(judge)(x0)


def test_every_row_is_measured_from_a_test_image_of_the_class_it_wants() -> None:
    found = digits().rows(torch.arange(100))
    c = make_context(found, 30)
    assert c["label"].tolist() == [*range(10)] * 3
    place = [int((found.images == image).flatten(1).all(1).nonzero()[0]) for image in c["image"]]
    assert found.labels is not None and torch.equal(found.labels[place], c["label"])
    assert len(set(place)) == 30


def test_weighted_data_are_the_target() -> None:
    energies = torch.tensor([[0.0, 1.0, 2.0], [3.0, 0.0, 0.0]])
    data = Weighted(torch.arange(3.0).reshape(3, 1, 1, 1), energies)
    want = torch.exp(-2 * energies.double())
    torch.testing.assert_close(data.weights(2.0), want / want.sum(1, keepdim=True))
    drawn = data.resample(2.0, 20_000, seed=0).reshape(2, -1)
    mean = (data.weights(2.0) @ torch.arange(3.0, dtype=torch.float64)).float()
    torch.testing.assert_close(drawn.mean(1), mean, atol=0.02, rtol=0)
    assert data.ess(0.0) == pytest.approx(3.0)


@pytest.mark.parametrize(("energies", "right"), [([0.0, torch.inf], True), ([0.0, torch.nan], False), ([torch.inf] * 2, False)])
def test_energies_may_rule_out_some_images_and_not_all(energies: list[float], right: bool) -> None:
    images = torch.zeros(2, 1, 2, 2)
    model = SimpleNamespace(device="cpu", train=ImageSet(images), config=SimpleNamespace(evaluation=SimpleNamespace(draws=2)))
    weigh = lambda: Weighted.of(model, lambda x, c: torch.tensor(energies), {"image": images[:1]}, 1, 0)  # noqa: E731
    if right:
        assert weigh().weights(1.0).tolist() == [[1, 0]]
    else:
        with pytest.raises(UserError, match="for training images"):
            weigh()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("x0.flatten(1).mean(1, keepdim=True)", "(2, 1)"),
        ("x0.mean()", "()"),
        ("x0.detach().flatten(1).mean(1)", "has no gradient by x_0"),
        ("x0.flatten(1).sum(1) * float('nan')", "gives nan"),
        ("{}[3]", "mine.py:Mine fails on two training images, (2, 1, 8, 8): KeyError: 3 (mine.py, line 3)"),
    ],
)
def test_an_energy_of_ones_own_is_tried_before_anything_is_trained(
    run: Callable[..., Any], tmp_path: Path, body: str, said: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"class Mine:\n    def __call__(self, x0, c=None):\n        return {body}\n")
    result = run("--set", f"targets.inpainting.energy={file}:Mine")
    assert result.exit_code == 2, result.output
    assert "targets.inpainting.energy" in result.output and said in " ".join(result.output.split())
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_an_estimator_of_ones_own_is_tried_before_anything_is_trained(run: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    lines = ["class Mine:", "    def __init__(self, energy):", "        self.energy = energy"]
    file.write_text("\n".join([*lines, "    def __call__(self, x, t, c=None):", "        return self.energy(x, c)[:, None]"]))
    result = run("--set", f"estimators.dps.guidance={file}:Mine")
    assert result.exit_code == 2 and "(2, 1)" in " ".join(result.output.split()), result.output
    assert not (tmp_path / "out").exists()


def test_an_estimator_is_tried_on_images_of_the_run_with_their_contexts(tmp_path: Path) -> None:
    from egd.config.base import validate
    from egd.experiments.images.config import ImagesConfig
    from egd.experiments.images.job import load_model
    from egd.experiments.images.model import check_components

    head = "class Mine:\n    def __init__(self, energy):\n        self.energy = energy\n    def __call__(self, x, t, c):\n"
    bodies = {"sound": "self.energy(x + x.new_zeros(12, 12), c) + 0 * c['image'].sum()", "wrong": "c['nothing']"}
    for name, body in bodies.items():
        file = tmp_path / f"{name}.py"
        file.write_text(f"{head}        return {body}\n")
        changed = {"data": {"name": "digits", "size": 12}, "estimators": {"mine": {"guidance": f"{file}:Mine"}}}
        tree = yaml.safe_load(RECIPE) | {"task": "digits"} | changed
        tree = {key: value for key, value in tree.items() if key not in ("tasks", "budgets")}
        config = validate(ImagesConfig, tree, "test")
        check_components(config)  # before the images are read, their shape is not known
        if name == "sound":
            load_model(config)
            continue
        with pytest.raises(UserError, match=r"\(2, 1, 12, 12\): KeyError: 'nothing' \(wrong.py, line 5\)") as error:
            load_model(config)
        assert error.value.key == "estimators.mine.guidance"


def test_a_mosaic_keeps_every_image_in_its_place() -> None:
    images = torch.rand(5, 1, 3, 3)
    whole = mosaic(images, 3)
    assert whole.shape == (1, 7, 11)
    assert torch.equal(whole[:, 4:7, 4:7], images[4]) and bool((whole[:, 4:, 8:] == 1).all())


# -- the product ---------------------------------------------------------------------------------------------------------


@pytest.mark.pictures
def test_a_run_leaves_figure_table_pipeline_and_summary(run: Callable[..., Any], tmp_path: Path) -> None:
    result = run()
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    found = summary(out)
    assert [(r["target"], r["beta"], r["estimator"]) for r in found["results"]] == [
        (target, beta, estimator)
        for target, beta in (("class", 1), ("class", 2), ("inpainting", 1))
        for estimator in ("data, weighted", "unguided", "dps", "support")
    ]
    assert all(math.isfinite(r["energy"]) for r in found["results"] if "energy" in r)
    watched = {r["estimator"] for r in found["results"] if r.get("off_scale") == 0}
    assert watched == {"dps", "support"} and "off scale" not in result.output  # in the summary, not in the table
    assert {"known_rmse", "hidden_rmse"} <= set(found["results"][-1]) and "accuracy" in found["results"][1]
    assert set(found["test_accuracy"]) == {"classifier", "judge"}
    with Image.open(out / RUN / "figures" / "samples.png") as picture:
        assert picture.width > picture.height > 100
    for text in ("digits class, beta 2", "known rmse", "support"):
        assert text in result.output
    import egd

    pipe = egd.EnergyGuidedPipeline.from_pretrained(out / RUN / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe(num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 1)


def test_x0_is_bounded_by_the_estimators_own_wrapper(run: Callable[..., Any], tmp_path: Path) -> None:
    assert run("--set", "estimators.dps.clip_x0={name: dynamic_threshold, quantile: 0.7}").exit_code == 0
    sharp = without_seconds(summary(tmp_path / "out")["results"])
    assert run("--out", tmp_path / "plain").exit_code == 0
    plain = without_seconds(summary(tmp_path / "plain")["results"])
    changed = {a["estimator"] for a, b in zip(sharp, plain, strict=True) if a != b}
    assert changed == {"dps"}


def test_a_killed_run_goes_on_to_the_same_result(run: Callable[..., Any], tmp_path: Path) -> None:
    assert run().exit_code == 0
    whole = summary(tmp_path / "out")
    metrics = (tmp_path / "out" / RUN / "metrics.jsonl").read_text()
    again = run()
    assert again.exit_code == 2 and "--resume" in again.output
    (tmp_path / "out" / RUN / "summary.json").unlink()
    for phase in ("calibration", "judge"):
        (tmp_path / "out" / RUN / "checkpoints" / f"{phase}.safetensors").unlink()
    assert run("--resume").exit_code == 0
    assert without_seconds(summary(tmp_path / "out")["results"]) == without_seconds(whole["results"])
    assert (tmp_path / "out" / RUN / "metrics.jsonl").read_text() == metrics
    assert "known rmse" in run("--resume").output


def test_seed_set_and_budget_decide_the_run(run: Callable[..., Any], tmp_path: Path) -> None:
    result = run("--seed", 3, "--set", "targets.inpainting=null", "--set", "targets.class.betas=[1]", "--budget", "longer")
    assert result.exit_code == 0, result.output
    out = tmp_path / "out" / "digits" / "seed-3"
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["unet"]["steps"] == 8 and set(config["targets"]) == {"class"}


def test_a_run_whose_images_were_replaced_goes_no_further(run: Callable[..., Any], tmp_path: Path) -> None:
    from egd.runs.experiment import load
    from egd.runs.progress import Reporter

    rng = np.random.default_rng(0)
    for i in range(12):
        save(Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)), tmp_path / "set" / f"{i}.png")
    settings = (
        "--set",
        f"data={{name: folder, path: {tmp_path / 'set'}, size: 8, channels: 1}}",
        "--set",
        "targets.class=null",
    )
    for i in range(12, 24):  # the same twelve under other names
        (tmp_path / "set" / f"{i}.png").write_bytes((tmp_path / "set" / f"{i - 12}.png").read_bytes())
    copied = run(*settings, "--set", "seed=1")
    assert copied.exit_code == 0 and "test images are copies of training images" in copied.output, copied.output
    for i in range(12, 24):
        (tmp_path / "set" / f"{i}.png").unlink()
    whole = run(*settings)
    assert whole.exit_code == 0 and "copies" not in whole.output, whole.output
    again = {"omegas": [1.0], "episodes": 2, "device": "cpu"}
    load("images", "test").evaluate(tmp_path / "out" / RUN, again, Reporter())
    save(Image.new("L", (8, 8), 7), tmp_path / "set" / "3.png")
    with pytest.raises(UserError, match="begun with other images than these 12"):
        load("images", "test").evaluate(tmp_path / "out" / RUN, again, Reporter())
    (tmp_path / "out" / RUN / "summary.json").unlink()
    resumed = run(*settings, "--resume")
    assert resumed.exit_code == 2 and "begun with other images than these 12" in " ".join(resumed.output.split())


def test_images_that_are_refused_leave_no_run_behind(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_text("no image")
    for wrong in (f"data={{name: folder, path: {tmp_path / 'set'}}}", "test_share=0.9999", "unet.widths=[8, 8, 8, 8, 8]"):
        assert run("--set", wrong).exit_code == 2
        assert not (tmp_path / "out" / RUN).exists()


def test_a_run_is_evaluated_again(run: Callable[..., Any], tmp_path: Path) -> None:
    from egd.runs.experiment import load
    from egd.runs.progress import Reporter

    assert run("--set", "targets.class=null").exit_code == 0
    experiment = load("images", "test")
    settings = {"omegas": [0.0, 1.0], "episodes": 4, "device": "cpu"}
    table = experiment.evaluate(tmp_path / "out" / RUN, settings, Reporter())
    assert [row["omega"] for row in table] == ["0"] * 4 + ["1"] * 4
    assert table[1]["result"] == table[5]["result"]  # unguided
    assert table[2]["result"] != table[6]["result"]
    assert {"energy of images", "set of images"} <= set(experiment.components())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("estimators.dps.guidance=dsp", "did you mean 'dps'"),
        ("estimators.dps.guidance=mse", "'mse' trains a network, and the library has none for energies of images"),
        ("estimators.dps.rule={name: additive, omga: 1}", "has no setting 'omga'"),
        ("targets.class.energy.label=11", "label 11 is not one of 0 to 9"),
        ("targets.class.energy=class_probabilty", "did you mean 'class_probability'"),
        ("scheduler.name=DDPMSchedulr", "did you mean 'DDPMScheduler'"),
        ("estimators.unguided.guidance=dps", "'unguided' is a row of its own"),
        ("targets.inpainting.energy={name: brightness, target: 128}", "less than or equal to 1"),
        ("data={name: digits, size: 100000}", "less than or equal to 4096"),
        ("test_share=0.9999", "leave none for the classifier"),
        ("test_share=0.995", "there is no image for the classifier"),
        ("scheduler=LCMScheduler", "LCMScheduler cannot be guided"),
        ("data={name: folder, path: /nowhere}", "no images below"),
        ("estimators.dps.clip_x0=dynamic_treshold", "did you mean 'dynamic_threshold'"),
        ("estimators.dps.clip_x0={name: dynamic_threshold, quantil: 1}", "has no setting 'quantil'"),
        ("data.name=digit", "did you mean 'digits'"),
        ("unet.widths=[8, 8, 8, 8, 8]", "8 pixels cannot be"),
        ("unet.widths=[9]", "multiple of 8"),
        ("unet.step=3", "did you mean 'steps'"),
    ],
)
def test_mistakes_are_named(run: Callable[..., Any], setting: str, message: str) -> None:
    result = run("--set", setting)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())


def test_an_objective_trains_its_own_network_for_every_target_and_beta(
    run: Callable[..., Any], two_heads: str, tmp_path: Path
) -> None:
    mine = ["--set", f"estimators={{mine: {{guidance: {{name: {two_heads}, width: 16}}}}}}", "--set", "energy_network.steps=2"]
    result = run(*mine)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out" / RUN / "checkpoints"
    phases = ["energy_mine_class_beta1", "energy_mine_class_beta2", "energy_mine_inpainting_beta1"]
    assert [path.stem for path in sorted(folder.glob("energy_*"))] == phases
    first = [load_file(folder / f"{phase}.safetensors") for phase in phases]
    inputs = 64 + 1 + (64 + 1)  # pixels, time, and the context: the pixels measured and the label
    assert all({(16, inputs), (2, 16)} <= {tuple(tensor.shape) for tensor in tensors.values()} for tensors in first)
    rows = {(r["target"], r["beta"], r["estimator"]): r for r in summary(tmp_path / "out")["results"]}
    assert rows["class", 1.0, "mine"]["energy"] != rows["class", 1.0, "unguided"]["energy"]
    assert rows["class", 1.0, "mine"]["energy"] != rows["class", 2.0, "mine"]["energy"]
    again = CliRunner().invoke(cli.app, ["eval", str(tmp_path / "out" / RUN), "--device", "cpu"])
    assert again.exit_code == 0, again.output


def test_images_without_classes_can_be_guided_but_not_by_a_class(run: Callable[..., Any], tmp_path: Path) -> None:
    for i in range(20):
        value = np.full((8, 8), 10 * i, dtype=np.uint8)
        Image.fromarray(value).save(tmp_path / f"{i}.png")
    data = f"data={{name: folder, path: {tmp_path}, size: 8, channels: 1}}"
    result = run("--set", data)
    assert result.exit_code == 2 and "these images have no classes" in result.output
    result = run("--set", data, "--set", "targets.class=null", "--out", tmp_path / "other")
    assert result.exit_code == 0, result.output


def test_an_unknown_task_is_refused(run: Callable[..., Any]) -> None:
    result = run("--task", "faces")
    assert result.exit_code == 2 and "no task 'faces'; known: digits" in result.output


def test_support_samples_are_the_training_images(tmp_path: Path) -> None:
    from egd.config.base import validate
    from egd.experiments.images.config import ImagesConfig
    from egd.experiments.images.job import load_model

    tree = {k: v for k, v in yaml.safe_load(RECIPE).items() if k not in ("tasks", "budgets")} | {"task": "digits"}
    model = load_model(validate(ImagesConfig, tree, "test"))
    drawn: Tensor = model.support(torch.Generator().manual_seed(0))({"label": torch.zeros(3)}, 5)
    assert drawn.shape == (3, 5, 1, 8, 8) and torch.equal(drawn[0], drawn[2])
    assert all(bool((model.train.images == image).flatten(1).all(1).any()) for image in drawn[0])
    assert not any(bool((model.test.images == image).flatten(1).all(1).any()) for image in drawn[0])
