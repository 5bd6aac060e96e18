"""Training: the whole job, what it promises, what it leaves behind when it fails, and how it goes on."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import certkit
from certkit import checkpoint
from certkit.config import Run, TrainingConfig, changed, override, preset
from certkit.data import load
from certkit.errors import CertkitError, CheckpointError, ConfigError
from certkit.models import build, create
from certkit.models.geometry import Entries, Spectral, weights
from certkit.training import losses, state
from certkit.training.augment import Change
from certkit.training.constraints import CONSTRAINTS
from certkit.training.faults import Diverged
from certkit.training.history import History
from certkit.training.loop import fit, schedule
from certkit.training.tasks import ImageTask, task_of
from certkit.training.train import made

SMALL = ["training.steps=12", "training.refresh=6"]
ALL = slice(None)


def small(*changes: str) -> Run:
    return override(preset("digits-vit"), [*SMALL, *changes])


def fitted(run: Run) -> tuple[nn.Module, History]:
    model = made(run, "cpu")
    return model, fit(model, task_of(run, "cpu"), run)


def same_file(a: Path, b: Path, name: str) -> bool:
    return (a / name).read_bytes() == (b / name).read_bytes()


def test_every_weight_of_a_preset_declares_its_geometry_and_none_is_a_normalisation() -> None:
    model = create(preset("digits-vit").model)
    kinds = {name: kind for name, _, kind in weights(model)}
    assert all(isinstance(kind, Spectral) for name, kind in kinds.items() if name.endswith("weight"))
    assert all(isinstance(kind, Entries) for name, kind in kinds.items() if not name.endswith("weight"))
    assert not [part for part in model.modules() if "Norm" in type(part).__name__]


def test_training_writes_a_checkpoint_that_reads_back_and_repeats_to_the_byte(tmp_path: Path) -> None:
    first = certkit.train(small(), out=tmp_path / "a", threads=1)
    certkit.train(small(), out=tmp_path / "b", threads=1)
    assert first.largest_norm_over_cap <= 1 + 1e-6
    assert first.promise == "provable"
    assert same_file(tmp_path / "a", tmp_path / "b", "model.safetensors")
    assert same_file(tmp_path / "a", tmp_path / "b", "metrics.jsonl")
    found = checkpoint.read(tmp_path / "a")
    assert found.config is not None
    model, name = build(found.config)
    checkpoint.load_into(model, found)
    assert name == first.subject.architecture
    assert found.sha256 == first.subject.sha256
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "config.json", "metrics.jsonl", "model.safetensors", "trained.json",
    ]  # fmt: skip


def test_metrics_say_what_was_measured(tmp_path: Path) -> None:
    certkit.train(small("data.validation=0.1"), out=tmp_path, threads=1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 6, 11, 12]
    first, last = lines[0], lines[-1]
    # The last line is of the network that was written: its validation accuracy is the one that trained.json states.
    trained = json.loads((tmp_path / "trained.json").read_text())
    assert last["validation_accuracy"] == trained["validation"]["count"] / trained["validation"]["total"]
    assert "loss" not in last
    assert set(first["norm_over_cap"]) == {
        name for name, _, kind in weights(create(preset("digits-vit").model)) if isinstance(kind, Spectral)
    }
    assert all(0.9 < share <= 1 + 1e-6 for share in first["norm_over_cap"].values())
    assert first["largest_entry"]["logits"] > 0
    assert math.isfinite(first["gradient_norm"])
    assert 0 <= first["validation_accuracy"] <= 1
    assert first["validation_loss"] > 0
    assert first["spikes"] == 0
    assert {"loss", "lr", "batch_accuracy", "pair_gain"} <= first.keys()


# Going on


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["training.optimizer=adamw", "training.constraint=svd-clip", "training.learning_rate=0.001"],
        ["training.optimizer=sgd", "training.constraint=none", "training.loss=cross-entropy", "model.dropout=0.2"],
        ["training.sensitivity=true", "training.constraint=spectral-soft-cap", "training.flip=true"],
    ],
    ids=["muon", "adamw", "sgd", "options"],
)
def test_a_run_goes_on_from_its_state_to_the_same_bytes(
    changes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small("training.save=5", *changes)
    certkit.train(run, out=tmp_path / "whole", threads=1)
    kept: list[bytes] = []
    save = state.save

    def stop(path: Path, *rest: object) -> None:
        save(path, *rest)  # type: ignore[arg-type]
        kept.append(path.read_bytes())
        raise KeyboardInterrupt

    monkeypatch.setattr(state, "save", stop)
    for _ in range(2):  # stopped after step 5 and again after step 10: neither is a multiple of refresh
        with pytest.raises(KeyboardInterrupt):
            certkit.train(run, out=tmp_path / "halted", threads=1)
    monkeypatch.undo()
    assert len(set(kept)) == 2
    certkit.train(run, out=tmp_path / "halted", threads=1)
    for name in ("model.safetensors", "metrics.jsonl", "config.json"):
        assert same_file(tmp_path / "whole", tmp_path / "halted", name)
    assert not (tmp_path / "halted" / "state.safetensors").exists()


def test_the_state_of_another_run_is_refused_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    save = state.save
    monkeypatch.setattr(state, "save", lambda *given: (save(*given), stop()))
    with pytest.raises(KeyboardInterrupt):
        certkit.train(small("training.save=5"), out=tmp_path)
    held = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(ConfigError) as caught:
        certkit.train(small("training.save=5", "training.seed=1"), out=tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: holds the state of another run; choose another --out, "
        "or delete state.safetensors there to train from the start; nothing was changed"
    )
    assert (tmp_path / "state.safetensors").read_bytes() == held


def test_how_often_a_run_saves_does_not_make_it_another() -> None:
    assert state.fingerprint(small("training.save=5")) == state.fingerprint(small("training.save=7"))
    assert state.fingerprint(small("training.steps=13")) != state.fingerprint(small())


@pytest.mark.parametrize("raw", [b"", b"junk", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_state_is_refused(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "state.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"^state.safetensors: not a state of certkit train \(.*\); delete it"):
        certkit.train(small(), out=tmp_path)
    assert (tmp_path / "state.safetensors").read_bytes() == raw


# Failing


def test_a_model_for_other_images_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for change, message in {
        "model.classes=11": "data set 'digits' has 10 classes, the model 11; set model.classes",
        "model.image_size=16": "data set 'digits' has images of 1 x 8 x 8, the model reads 1 x 16 x 16; "
        "set model.image_size and model.channels",
        "training.constraint=weight-decay": "training.constraint: weight-decay with weight_decay 0 does nothing; "
        "expected training.weight_decay > 0",
    }.items():
        with pytest.raises(ConfigError) as caught:
            certkit.train(small(change), out=tmp_path / "out")
        assert str(caught.value) == message
    assert not (tmp_path / "out").exists()


def test_a_promise_that_is_not_kept_is_an_error_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = CONSTRAINTS["stiefel"]

    def loose(weight: torch.Tensor, limit: float, step: object) -> torch.Tensor:
        return honest.project(weight, limit, step) * 1.01  # type: ignore[arg-type]

    monkeypatch.setitem(CONSTRAINTS, "stiefel", honest.__class__(**{**fields(honest), "project": loose}))
    with pytest.raises(CertkitError) as caught:
        certkit.train(small("training.steps=2"), out=tmp_path / "out")
    assert re.fullmatch(
        r"training: \S+weight has 1\.0(0999\d+|1\d+) times its cap at step \d, beyond 1 \+ 1e-06; "
        r"its constraint promises more; this is a fault of certkit's own",
        str(caught.value),
    )
    assert not (tmp_path / "out").exists()


def fields(record: object) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}  # type: ignore[attr-defined]


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small("training.save=5", "training.loss=cross-entropy", "training.constraint=none")
    drawn = ImageTask.batch
    seen = 0

    def spoilt(self: ImageTask, *given: object) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal seen
        seen += 1
        x, y = drawn(self, *given)  # type: ignore[arg-type]
        return (x * math.nan if seen == 8 else x), y

    monkeypatch.setattr(ImageTask, "batch", spoilt)
    with pytest.raises(Diverged) as caught:
        certkit.train(run, out=tmp_path, threads=1)
    assert str(caught.value) == (
        "training: the loss is nan at step 7; lower training.learning_rate; the weights of step 5 are kept in last-good"
    )
    found = checkpoint.read(tmp_path / "last-good")
    assert found.config is not None
    checkpoint.load_into(build(found.config)[0], found)
    assert not (tmp_path / "model.safetensors").exists()
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 1
    # A rate that does not diverge is another run: it is refused here, as the state is not its own.
    with pytest.raises(ConfigError, match="holds the state of another run; choose another --out"):
        certkit.train(override(run, ["training.learning_rate=0.01"]), out=tmp_path, threads=1)


def test_a_run_that_diverges_before_its_first_state_writes_nothing(tmp_path: Path) -> None:
    run = small(
        "training.optimizer=sgd", "training.constraint=none", "training.loss=cross-entropy",
        "training.learning_rate=1e30", "training.steps=50",
    )  # fmt: skip
    with pytest.raises(Diverged, match=r"(is nan|is inf|no longer finite) at step \d+; lower training.learning_rate$"):
        certkit.train(run, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The pieces


def test_a_batch_in_pieces_gives_the_gradient_of_the_whole() -> None:
    whole, parts = (small("training.precision=float64", f"training.pieces={n}", "training.steps=3") for n in (1, 4))
    a, b = fitted(whole)[0], fitted(parts)[0]
    assert all(torch.allclose(x, y, rtol=0, atol=1e-10) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_weights() -> None:
    model, history = fitted(small("training.precision=bfloat16", "training.steps=3"))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    exact = fitted(small("training.steps=3"))[1]
    assert history.lines[-2]["loss"] != exact.lines[-2]["loss"]
    assert history.lines[-2]["loss"] == pytest.approx(exact.lines[-2]["loss"], rel=0.1)


def test_a_float64_network_is_read_back_as_one(tmp_path: Path) -> None:
    trained = certkit.train(small("training.precision=float64"), out=tmp_path)
    found = checkpoint.read(tmp_path)
    assert found.config is not None
    model, _ = build(found.config)
    checkpoint.load_into(model, found)
    assert {weight.dtype for weight in model.parameters()} == {torch.float64}
    assert found.sha256 == trained.subject.sha256


def test_the_schedule_rises_holds_and_falls() -> None:
    settings = TrainingConfig(steps=100, warmup=10, decay_from=0.5)
    factors = [schedule(settings, step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:51] == [1.0] * 42
    assert factors[75] == pytest.approx(0.5)
    assert 0 < factors[99] < 0.03
    assert {schedule(TrainingConfig(steps=100, decay_from=1.0), step) for step in range(100)} == {1.0}


def test_losses_are_zero_or_smallest_exactly_where_samples_are_certified() -> None:
    gain = torch.full((3, 3), 2.0).fill_diagonal_(0)
    logits = torch.tensor([[1.0, 0.0, -1.0]], requires_grad=True)
    wanted = torch.tensor([0])
    # The margin is 1 and its gain 2: the radius is a half.
    assert losses.hinge(logits, wanted, gain, eps=0.5).item() == 0
    assert losses.hinge(logits, wanted, gain, eps=0.75).item() == pytest.approx(0.25)
    losses.hinge(logits, wanted, gain, eps=0.75).backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[-0.5, 0.5, 0.0]]
    assert losses.hinge(logits, torch.tensor([2]), gain, eps=0.5).item() == pytest.approx(1.5)
    raised = torch.tensor([[1.0, 1.0, 0.0]])  # eps 0.5 raises both wrong logits by 1
    expected = F.cross_entropy(raised * math.sqrt(2) / 0.1 / 2, wanted)
    found = losses.offset_cross_entropy(logits, wanted, gain, eps=0.5, temperature=0.1)
    assert found.item() == pytest.approx(expected.item())


def test_images_move_by_whole_pixels_exactly_and_mirror() -> None:
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    down_right = Change(torch.tensor([[1.0, 0.0]]), None).of(image, ALL)
    assert torch.allclose(down_right[..., :3], image[..., 1:], atol=1e-5)
    assert torch.allclose(down_right[..., 3], torch.zeros(4), atol=1e-5)
    assert torch.equal(Change(None, torch.tensor([True])).of(image, ALL), image.flip(-1))
    assert torch.equal(Change(None, torch.tensor([False])).of(image, ALL), image)


def test_spikes_are_losses_far_beyond_those_before() -> None:
    history = History()
    for loss in [1.0] * 50 + [2.1, 1.9, 1.0, 5.0]:
        history.saw(loss)
    assert history.spikes == 2
    assert len(history.recent) == 50


def test_held_out_samples_are_never_trained_on_and_the_same_for_every_seed() -> None:
    tasks = [task_of(small("data.validation=0.2", f"training.seed={seed}"), "cpu") for seed in (0, 1)]
    data = load("digits", "train")
    for task in tasks:
        assert isinstance(task, ImageTask)
        held = task.held_out()
        assert held is not None
        assert len(held[1]) == round(0.2 * len(data.labels))
        assert len(held[1]) + len(task.labels) == len(data.labels)
        counts = [int((images == held[0][0]).flatten(1).all(1).sum()) for images in (task.images, data.images)]
        assert counts == [0, 1]
    a, b = (task.held_out() for task in tasks)
    assert a is not None
    assert b is not None
    assert torch.equal(a[0], b[0])


def test_a_comparison_is_not_one_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^this run is a comparison of several; certkit.compare makes those$"):
        certkit.train(preset("compare-digits"), out=tmp_path)


def test_a_seed_decides_the_run() -> None:
    run = small("training.steps=2")
    a, b, c = (fitted(changed(run, {"training": {"seed": seed}}, "test"))[0] for seed in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not all(torch.equal(x, y) for x, y in zip(a.parameters(), c.parameters(), strict=True))


def test_tensorboard_is_named_when_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError) as caught:
        certkit.train(small(), out=tmp_path / "out", tensorboard=True)
    assert str(caught.value) == (
        "--tensorboard needs the package tensorboard; pip install 'certkit[tensorboard]', or leave it out: "
        "metrics.jsonl holds the same numbers"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_preset_trains_to_97_percent_clean_and_70_percent_certified_at_a_quarter(tmp_path: Path) -> None:
    """Certified without normalisation layers, every matrix inside its cap, on samples that training never saw."""
    trained = certkit.train(preset("digits-vit"), out=tmp_path, threads=1)
    assert trained.promise == "provable"
    assert trained.largest_norm_over_cap <= 1 + 1e-6
    found = checkpoint.read(tmp_path)
    assert found.config is not None
    model, _ = build(found.config)
    checkpoint.load_into(model, found)
    assert not [part for part in model.modules() if "Norm" in type(part).__name__]
    certificate = certkit.certify(
        model.eval(), load("digits", "test"), eps=["0.25"], norm="l2", out=tmp_path, threads=1
    )
    (point,) = certificate.certified
    assert 100 * certificate.clean.count >= 97 * certificate.clean.total
    assert 100 * point.certified.count >= 70 * point.certified.total


# Found by review


def test_a_network_whose_test_loss_overflows_is_not_written(tmp_path: Path) -> None:
    run = small(
        "training.optimizer=sgd", "training.constraint=none", "training.loss=cross-entropy",
        "training.learning_rate=1e38", "training.steps=1",
    )  # fmt: skip
    with pytest.raises(Diverged, match=r"lower training.learning_rate$"):
        certkit.train(run, out=tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_the_step_that_is_kept_is_the_step_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from certkit.training.stepper import Stepper

    step, made_steps = Stepper.step, 0

    def spoiling(self: Stepper, factor: float) -> None:
        nonlocal made_steps
        made_steps += 1
        step(self, factor)
        if made_steps == 10:  # at a save boundary: the state of step 10 must not be written
            with torch.no_grad():
                self.free[0].fill_(math.nan)

    monkeypatch.setattr(Stepper, "step", spoiling)
    with pytest.raises(Diverged) as caught:
        certkit.train(small("training.save=5"), out=tmp_path, threads=1)
    assert str(caught.value).endswith(
        " is no longer finite at step 10; lower training.learning_rate; the weights of step 5 are kept in last-good"
    )
    saved = checkpoint.read(tmp_path / "last-good")
    assert all(bool(value.isfinite().all()) for value in saved.state.values())


def test_metrics_written_after_the_last_state_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small("training.save=5", "training.refresh=2")
    certkit.train(run, out=tmp_path / "whole", threads=1)
    save = state.save

    def stop(*given: object) -> None:
        save(*given)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(state, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        certkit.train(run, out=tmp_path / "halted", threads=1)
    monkeypatch.undo()
    with (tmp_path / "halted" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 6, "loss": 1.0}\n')
    certkit.train(run, out=tmp_path / "halted", threads=1)
    assert same_file(tmp_path / "whole", tmp_path / "halted", "metrics.jsonl")


def test_a_state_whose_metrics_are_gone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = state.save
    monkeypatch.setattr(state, "save", lambda *given: (save(*given), (_ for _ in ()).throw(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        certkit.train(small("training.save=5"), out=tmp_path)
    monkeypatch.undo()
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError) as caught:
        certkit.train(small("training.save=5"), out=tmp_path)
    assert str(caught.value) == (
        "metrics.jsonl: holds 0 lines, the state beside it has 1; delete state.safetensors to train from the start"
    )


def test_the_state_of_another_thread_count_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = state.save
    monkeypatch.setattr(state, "save", lambda *given: (save(*given), (_ for _ in ()).throw(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        certkit.train(small("training.save=5"), out=tmp_path, threads=1)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match=r"holds the state of another run \(they differ in threads\); choose another"):
        certkit.train(small("training.save=5"), out=tmp_path, threads=2)


def spoilt_states(path: Path) -> dict[str, bytes]:
    """States with one part missing or wrong, by what is wrong."""
    import safetensors.torch

    with safetensors.safe_open(path, framework="pt") as file:
        held = json.loads(file.metadata()["certkit.state"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def packed(header: dict[str, object], kept: dict[str, torch.Tensor]) -> bytes:
        return safetensors.torch.save(kept, metadata={"certkit.state": json.dumps(header)})

    momentum = next(name for name in tensors if name.endswith("momentum"))
    weight = next(name for name in tensors if name.startswith("model."))
    return {
        "no run": packed({k: v for k, v in held.items() if k != "run"}, tensors),
        "no numbers": packed({k: v for k, v in held.items() if k != "numbers"}, tensors),
        "another format": packed({**held, "format": 99}, tensors),
        "no momentum": packed(held, {k: v for k, v in tensors.items() if k != momentum}),
        "no weight": packed(held, {k: v for k, v in tensors.items() if k != weight}),
        "a misshapen weight": packed(held, {**tensors, weight: torch.zeros(3)}),
        "no generator": packed(held, {k: v for k, v in tensors.items() if k != "random.batches"}),
    }


def test_a_state_that_lacks_a_part_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = state.save
    monkeypatch.setattr(state, "save", lambda *given: (save(*given), (_ for _ in ()).throw(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        certkit.train(small("training.save=5"), out=tmp_path)
    monkeypatch.undo()
    path = tmp_path / "state.safetensors"
    for what, raw in spoilt_states(path).items():
        path.write_bytes(raw)
        with pytest.raises((CheckpointError, ConfigError)) as caught:
            certkit.train(small("training.save=5"), out=tmp_path)
        assert "\n" not in str(caught.value), what
        assert "delete" in str(caught.value), what


def test_a_folder_that_cannot_be_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CertkitError, match=r"^\S+/file/sub: no folder can be made there \(\S+/file is a file\)$"):
        certkit.train(small("training.steps=1000000"), out=tmp_path / "file" / "sub")


def test_the_training_split_cannot_be_the_test_split(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        certkit.train(small("data.test=train"), out=tmp_path / "out")
    assert str(caught.value) == "data.test 'train' is the training split; the test split is never trained on"


def test_a_share_that_holds_nothing_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        certkit.train(small("data.validation=1e-6"), out=tmp_path / "out")
    assert str(caught.value) == "data.validation 1e-06 of 1437 samples holds out 0"


def test_a_margin_loss_on_a_head_of_zeros_is_refused_with_the_reason(tmp_path: Path) -> None:
    run = small(
        "model.name=mlp", "model.zero_head=true", "training.constraint=spectral-soft-cap", "training.learning_rate=0.05"
    )
    with pytest.raises(ConfigError) as caught:
        certkit.train(run, out=tmp_path / "out")
    assert str(caught.value) == (
        "training.loss offset-cross-entropy asks for margins, but two logits of this network cannot part (a last layer of "
        "zeros?); start it elsewhere, or use cross-entropy"
    )


@pytest.mark.parametrize("value", ["0", "abc", "2"])
def test_a_world_without_torchrun_is_refused(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", value)
    with pytest.raises(ConfigError) as caught:
        certkit.train(small(), out=tmp_path / "out")
    assert str(caught.value) == (
        f"WORLD_SIZE is '{value}' in the environment, but this process was not started by torchrun; unset it"
    )


def test_the_loss_uses_a_gain_that_is_derived_again_and_its_own_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    from certkit.training import loop

    calls: list[int] = []
    gains = loop.proved_gains
    monkeypatch.setattr(loop, "proved_gains", lambda *given: (calls.append(1), gains(*given))[1])
    fitted(small("training.steps=7", "training.refresh=3"))
    assert len(calls) == 3
    names = ("hinge", "cross-entropy", "offset-cross-entropy")
    first = {loss: fitted(small(f"training.loss={loss}"))[1].lines[0]["loss"] for loss in names}
    # Before training: a radius a little below 0 falls short of eps 0.35, ten classes are a guess, and margins cost more.
    assert 0.35 < first["hinge"] < 1 < first["cross-entropy"] < 2.6 < first["offset-cross-entropy"]


def test_the_schedule_reaches_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    from certkit.training.stepper import Stepper

    factors: list[float] = []
    step = Stepper.step
    monkeypatch.setattr(Stepper, "step", lambda self, factor: (factors.append(factor), step(self, factor))[1])
    run = small("training.steps=6", "training.decay_from=0.0")
    fitted(run)
    assert factors == [schedule(run.training, step) for step in range(6)]
    assert factors[0] == 1.0
    assert factors[-1] < 0.2


def test_batches_never_hold_a_held_out_sample() -> None:
    task = task_of(small("data.validation=0.3"), "cpu")
    assert isinstance(task, ImageTask)
    held = task.held_out()
    assert held is not None
    plain = task_of(small("data.validation=0.3", "training.shift=0.0"), "cpu")
    images, _ = plain.batch(torch.Generator().manual_seed(0), ALL)
    kept = {image.numpy().tobytes() for image in plain.images}  # type: ignore[union-attr]
    assert all(image.numpy().tobytes() in kept for image in images)


def test_a_bound_that_is_lost_on_the_way_is_divergence(tmp_path: Path) -> None:
    run = small("training.optimizer=adamw", "training.constraint=none", "training.learning_rate=1e30")
    with pytest.raises(Diverged, match=r" at step \d+.*; lower training.learning_rate$"):
        certkit.train(run, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_compiled_network_trains_like_the_plain_one(tmp_path: Path) -> None:
    plain, compiled = (fitted(small("training.steps=3", f"training.compile={v}"))[1] for v in ("false", "true"))
    assert compiled.lines[-2]["loss"] == pytest.approx(plain.lines[-2]["loss"], rel=1e-3)
