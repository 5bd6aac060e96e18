"""certkit language and certkit stability: language models, whose threat moves embeddings."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkit.commands import options
from certkit.errors import CheckpointError, ConfigError, EvaluationInvalid, Refuted, one_line

if TYPE_CHECKING:
    from torch import Tensor

    from certkit.campaign import Campaign
    from certkit.language.audit import Moves
    from certkit.language.certificate import Bounded, Proof
    from certkit.language.records import LanguageAudit, Stability, Substitution
    from certkit.models.gpt import LanguageModel
    from certkit.records import Subject
    from certkit.text.tokens import Tokens

SHOWN = 4  # contexts that the report spells out
SUBSTITUTED = 12  # contexts whose tokens are replaced: each is a search of its own

text = click.option("--data", required=True, help="Folder with the text, as certkit train reads it.")
split = click.option("--split", default="test", show_default=True, help="Split of the text.")
tokenizer = click.option("--tokenizer", default="character", show_default=True, help="What made the tokens.")
context = click.option("--context", type=click.IntRange(min=1), help="Tokens per context.  [default: the model's]")
contexts = click.option(
    "--contexts",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Contexts, from the start of the split.",
)
moves = click.option(
    "--moves",
    default="all,1,8",
    show_default=True,
    help="Which tokens move: all, or at most so many of them; separated by commas.",
)
steps = click.option(
    "--steps", type=click.IntRange(min=1), default=20, show_default=True, help="Steps of an attack at one radius."
)


@click.command()
@options.checkpoint
@options.together(
    text, split, tokenizer, context, contexts, options.eps, moves, options.suite, steps, options.seed, options.threads,
    *options.result,
)  # fmt: skip
def language(checkpoint: Path, **given: Any) -> None:
    """Certify and attack a language model in embedding space, and write report.html.

    Every token's embedding moves by at most eps in l2. For every position of every context it is proved whether the
    predicted token stays on top, and how far the log-probability of the true one may fall. Writes language.json, with a
    ledger that python -m certkit.bounds.ledger derives again, positions.parquet, and the campaign of the last positions.
    Exits with 4 when an example lies inside a certified radius.
    """
    found, page = run_language(checkpoint, **given)
    options.say(found, [*lines(found), f"report  {page}"], json=given["json"])
    if found.verdict == "REFUTED":
        raise Refuted(found.verdict_reason)
    if found.verdict == "INCONCLUSIVE":
        raise EvaluationInvalid(found.verdict_reason)


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@options.together(text, split, tokenizer, context, contexts, options.threads, *options.result)
def stability(folders: tuple[Path, ...], **given: Any) -> None:
    """How large the numbers inside language models get, and what precision holds them; several FOLDERS side by side.

    Entries and attention logits are measured on the text and proved over all token sequences; norms are proved; losses,
    spikes and gradients come from metrics.jsonl beside a checkpoint. Writes stability.json, and stability-2.json and so
    on for further folders.
    """
    from certkit.files import save

    found = [run_stability(folder, **given) for folder in folders]
    paths = [given["out"] / f"stability{'' if n == 1 else f'-{n}'}.json" for n in range(1, len(found) + 1)]
    for record, path in zip(found, paths, strict=True):
        save(record, path)
    told = [*side_by_side(folders, found), *(f"wrote {path}" for path in paths)]
    options.say(
        found[0] if len(found) == 1 else [one.model_dump(mode="json") for one in found], told, json=given["json"]
    )


def load(checkpoint: Path) -> tuple[LanguageModel, Subject]:
    """The language model of a checkpoint. Raises CheckpointError for any other network."""
    from certkit.commands.loading import load_model
    from certkit.models.gpt import LanguageModel

    model, subject = load_model(checkpoint)
    if not isinstance(model, LanguageModel):
        raise CheckpointError(
            f"{one_line(checkpoint.name, 120)}: {subject.architecture} is no language model of certkit (gpt, gpt-layernorm)"
        )
    return model.eval(), subject


def read(model: LanguageModel, given: dict[str, Any]) -> tuple[Tokens, Tensor, Tensor]:
    """The text, its contexts and what follows each token. Raises ConfigError when the vocabulary is not the model's."""
    from certkit.text.tokens import load_text

    tokens = load_text(given["data"], given["split"], tokenizer=given["tokenizer"])
    rows = len(table(model))
    if tokens.vocabulary != rows:
        raise ConfigError(f"the text has a vocabulary of {tokens.vocabulary}, the model one of {rows}")
    return tokens, *tokens.windows(given["context"] or model.context, given["contexts"])


def table(model: LanguageModel) -> Tensor:
    """The embeddings of all tokens."""
    found: Any = model.embed.weight
    return found.detach()  # type: ignore[no-any-return]


def chosen(text: str) -> list[Moves]:
    """The ways to choose tokens that ``--moves`` names, all first. Raises ConfigError."""
    from certkit.language.audit import Moves

    found: list[Moves] = [Moves(None)]
    for part in options.radii(text):
        if part != "all" and not (part.isdecimal() and part.isascii() and 0 < int(part) < 10**6):
            raise ConfigError(f"--moves {one_line(part, 40)!r} is neither all nor a number of tokens")
        if part != "all":
            found.append(Moves(int(part)))
    return list(dict.fromkeys(found))


def run_language(checkpoint: Path, **given: Any) -> tuple[LanguageAudit, Path]:
    """The command's work: prove, attack, set side by side, write."""
    import numpy as np

    from certkit.bounds.ledger import to_json
    from certkit.files import digest_file, save
    from certkit.language import audit
    from certkit.language.certificate import agreement, bounded, proof
    from certkit.language.records import LanguageAudit, Text
    from certkit.machine import environment, pinned, provenance
    from certkit.records import File, radii
    from certkit.statistics import rate

    started, out = time.monotonic(), given["out"]
    ways, eps = chosen(given["moves"]), radii(options.radii(given["eps"]))
    model, subject = load(checkpoint)
    tokens, x, y = read(model, given)
    with pinned(given["threads"]) as count:
        reach = eps[-1].value
        bounds = bounded(model, x.shape[1], reach)
        embedded = table(model)[x]
        found = proof(bounds, embedded, [at.value for at in eps])
        agreement(bounds, model, embedded, found)
        campaign = _campaign(model, subject, bounds, tokens, embedded, y, given)
        curves, nearest = _curves(model, found, embedded, y, ways, eps, campaign, given)
        substituted = _substituted(model, found, tokens, x, given["seed"])
    right = found.predicted == y.numpy()
    everywhere = ways[0].radius(found)
    audit.write_positions(
        out / "positions.parquet",
        {
            "context": np.repeat(np.arange(len(x)), x.shape[1]),
            "position": np.tile(np.arange(x.shape[1]), len(x)),
            "token": x.numpy(),
            "true": y.numpy(),
            "predicted": found.predicted,
            "right": right,
            "room": found.room,
            "radius": everywhere,
            "radius_one": audit.Moves(1).radius(found),
            "attacked": nearest,
        },
    )
    contradictions = sum(curve.contradictions for curve in curves)
    verdict, reason = judged(contradictions, campaign)
    record = LanguageAudit(
        subject=subject,
        data=Text(**tokens.record.model_dump()),
        context=x.shape[1],
        contexts=len(x),
        positions=x.numel(),
        verdict=verdict,
        verdict_reason=reason,
        clean=rate(int(right.sum()), x.numel()),
        loss=float(found.cross_entropy(y.numpy()).mean()),
        slope=audit.slope(bounds, model),
        words=audit.words(table(model)),
        curves=curves,
        losses=audit.losses(found, y.numpy(), eps),
        campaign=", ".join(spec.name for spec in campaign.plan.attacks) + f" ({campaign.validity})",
        substitutions=substituted,
        shown=audit.shown(found, x.numpy(), y.numpy(), nearest, tokens, range(min(SHOWN, len(x)))),
        table=File(name="positions.parquet", sha256=digest_file(out / "positions.parquet")),
        ledger=to_json(bounds.everywhere),
        pair_gain=tuple(tuple(number.to_float() for number in row) for row in bounds.everywhere.pairs.gain),
        pair_error=bounds.error,
        assumptions=(
            "exp, tanh, erf and the like of the float64 centre are accurate to a few units in the last place",
            "torch.export captures the function that the module computes (checked on these contexts)",
        ),
        environment=environment("cpu", count),
        provenance=provenance(started),
    )
    save(record, out / "language.json")
    page: Path = importlib.import_module("certkit.reports.language").report(out)
    return record, page


def _campaign(
    model: LanguageModel,
    subject: Subject,
    bounds: Bounded,
    tokens: Tokens,
    embedded: Tensor,
    y: Tensor,
    given: dict[str, Any],
) -> Campaign:
    """The campaign of the last positions: every token moves, the engine of ``certkit attack`` in the norm ``token``."""
    import torch

    import certkit
    from certkit.data import Dataset, fingerprint
    from certkit.models.gpt import AtEmbeddings
    from certkit.records import Data

    labels, images = y[:, -1].contiguous(), embedded.float().contiguous()
    record = Data(
        name=tokens.record.name,
        split=tokens.record.split,
        count=len(images),
        sha256=fingerprint(images, labels),
        classes=tuple(one_line(tokens.decode([token]), 40) for token in range(tokens.vocabulary)),
    )
    samples = Dataset(
        record=record, images=images, labels=labels, indices=torch.arange(len(images)), box=bounds.domain.box
    )
    found: Campaign = certkit.attack(
        AtEmbeddings(model).eval(),
        samples,
        subject=subject,
        norm="token",
        eps=options.radii(given["eps"]),
        suite=given["suite"],
        out=given["out"],
        seed=given["seed"],
        threads=given["threads"],
    )
    return found


def _curves(
    model: LanguageModel,
    found: Proof,
    embedded: Tensor,
    y: Tensor,
    ways: Sequence[Moves],
    eps: Sequence[Any],
    campaign: Campaign,
    given: dict[str, Any],
) -> tuple[tuple[Any, ...], Any]:
    """One curve for each choice of tokens, and the nearest example of each position when all move."""
    import numpy as np
    import torch

    from certkit.language.audit import curve

    attacks = importlib.import_module("certkit.attacks.language")
    radii, names = [at.value for at in eps if at.value > 0], {"steps": given["steps"], "seed": given["seed"]}
    every = attacks.pgd(model.from_embeddings, embedded, y, radii, **names).distance
    last = torch.zeros(y.shape, dtype=torch.bool)
    last[:, -1] = True
    curves = []
    for way in ways:
        movable = torch.zeros(y.shape)
        movable[:, -(way.tokens or y.shape[1]) :] = 1
        one = attacks.pgd(model.from_embeddings, embedded, y, radii, movable_NT=movable, judged_NT=last, **names)
        near = attacks.ddn(model.from_embeddings, embedded, y, radii[-1], steps=2 * given["steps"], movable_NT=movable)
        distance = np.minimum(one.distance, near.distance)
        if way.tokens is None:
            distance[:, -1] = np.fmin(distance[:, -1], campaign.distance)
            every = np.minimum(every, distance)
            curves.append(curve(way, found, y.numpy(), eps, every))
        curves.append(curve(way, found, y.numpy(), eps, distance, last=True))
    return tuple(curves), every


def _substituted(model: LanguageModel, found: Proof, tokens: Tokens, x: Tensor, seed: int) -> tuple[Substitution, ...]:
    """Tokens replaced in some contexts until the last prediction changes, with what that costs in embedding space."""
    from certkit.language.audit import spelled
    from certkit.language.records import Substitution

    attacks = importlib.import_module("certkit.attacks.language_tokens")
    predicted, radius = found.predicted, found.radius(found.everywhere)
    near = attacks.substitutes([tokens.decode([token]) for token in range(tokens.vocabulary)])
    made = []
    for n in range(min(SUBSTITUTED, len(x))):
        label = int(predicted[n, -1])
        greedy = attacks.greedy_coordinate_gradient(model, x[n], label, seed=seed)
        for kind, one in (
            ("greedy coordinate gradient", greedy),
            ("mistyped", attacks.mistyped(model, x[n], label, near, changes=2)),
        ):
            made.append(
                Substitution(
                    kind=kind,
                    context=n,
                    broken=one.broken,
                    places=one.places,
                    before=spelled(tokens, x[n].numpy()),
                    after=tuple(tokens.decode([token]) for token in one.tokens),
                    distance=one.distance,
                    jointly=one.jointly,
                    radius=float(radius[n, -1]),
                )
            )
    return tuple(made)


def judged(contradictions: int, campaign: Campaign) -> tuple[Any, str]:
    """The verdict, and why."""
    if contradictions:
        return "REFUTED", f"{contradictions} positions were broken in float32 inside their certified radius"
    if campaign.validity == "invalid":
        failed = ", ".join(check.id for check in campaign.checks if check.status == "fail")
        return "INCONCLUSIVE", f"the campaign of the last positions failed its own checks ({failed})"
    return "NOT REFUTED", "no attack on embeddings found an example inside a certified radius"


def lines(found: LanguageAudit) -> list[str]:
    """The audit in a few lines."""
    from certkit.bounds.number import Up

    slope = found.slope
    told = [
        f"{found.verdict}: {found.verdict_reason}",
        f"next token       {options.share(found.clean)}, loss {found.loss:.4f}",
        f"Lipschitz        {Up.of(slope.sound).to_float():.6g} (RMS, all heads and scales; within {slope.reach:g} of the embeddings)",
    ]
    if slope.published is not None and slope.factor is not None:
        told.append(
            f"published        {slope.published:.6g} by the formula of arXiv 2507.13338: too small by {slope.factor:.4g}"
        )
    for curve in found.curves:
        told.append(
            f"{curve.moves} moving, {curve.positions} positions{'' if curve.positions == 'all' else ' of contexts'}; median radius {curve.median_radius:.4g}, contradictions {curve.contradictions}"
        )
        for proved, attacked in zip(curve.certified, curve.attacked, strict=True):
            told.append(
                f"  {proved.eps.text:<10}{options.share(proved.certified):<26}"
                f"under attack {options.share(attacked.robust, up=True)}"
            )
    for at in found.losses:
        if at.loss is None or at.change is None:
            told.append(f"loss within {at.eps.text:<10}no bound")
        else:
            told.append(f"loss within {at.eps.text:<10}at most {at.loss:.4f}, mean change at most {at.change:.4f}")
    return told


def run_stability(folder: Path, **given: Any) -> Stability:
    """The stability audit of one checkpoint."""
    from certkit.health.activations import watched
    from certkit.health.largest import fits, largest_entries, largest_scores
    from certkit.health.spectra import weight_norms
    from certkit.health.training import METRICS, training_steps
    from certkit.language.certificate import PIECE, bounded
    from certkit.language.records import Stability, Text
    from certkit.machine import environment, pinned, provenance

    started = time.monotonic()
    model, subject = load(folder)
    tokens, x, _ = read(model, given)
    with pinned(given["threads"]) as count:
        bounds = bounded(model, x.shape[1], 2.0**-20)
        seen = watched(bounds.program, table(model)[x], piece=PIECE)
        entries = largest_entries(bounds.everywhere, seen.entries)
        scores = largest_scores(bounds.everywhere, seen.entries, seen.scores)
    return Stability(
        subject=subject,
        data=Text(**tokens.record.model_dump()),
        context=x.shape[1],
        contexts=len(x),
        entries=entries,
        scores=scores,
        norms=weight_norms(model.named_parameters()),
        fits=fits(entries),
        training=training_steps(folder / METRICS),
        environment=environment("cpu", count),
        provenance=provenance(started),
    )


def side_by_side(folders: Sequence[Path], found: Sequence[Stability]) -> list[str]:
    """The audits as columns, a row for each figure."""
    from certkit.bounds.number import Up

    def largest(texts: Sequence[str]) -> str:
        return f"{max((Up.of(text).to_float() for text in texts), default=0.0):.4g}"

    rows: list[tuple[str, list[str]]] = [
        ("", [one_line(folder.name, 24) for folder in folders]),
        ("largest entry, measured", [f"{max(e.measured for e in one.entries):.4g}" for one in found]),
        ("largest entry, proved", [largest([e.certified for e in one.entries]) for one in found]),
        ("attention logit, measured", [f"{max((s.measured for s in one.scores), default=0):.4g}" for one in found]),
        ("attention logit, proved", [largest([s.certified for s in one.scores]) for one in found]),
        ("largest weight norm", [f"{max(one.norms.values()):.4g}" for one in found]),
    ]
    for name in [fit.name for fit in found[0].fits]:
        every = [next(fit for fit in one.fits if fit.name == name) for one in found]
        words = [f"{fit.headroom:.3g}x, {'proved' if fit.fits else 'not proved'}" for fit in every]
        rows.append((f"{name} headroom", words))
    if any(one.training for one in found):
        ran = [one.training for one in found]
        rows += [
            ("training loss, last", ["no metrics" if t is None else f"{t.loss:.4g}" for t in ran]),
            ("loss spikes", ["no metrics" if t is None else str(t.spikes) for t in ran]),
            ("gradient norm, largest", ["no metrics" if t is None else f"{t.largest_gradient_norm:.4g}" for t in ran]),
            (
                "norm over cap, largest",
                ["no metrics" if t is None else f"{t.largest_norm_over_cap or 0.0:.6g}" for t in ran],
            ),
        ]
    return [f"{name:<27}" + "".join(f"{cell:<24}" for cell in cells).rstrip() for name, cells in rows]
