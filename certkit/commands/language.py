"""certkit language and certkit stability: language models, whose threat moves embeddings."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkit.commands import options
from certkit.errors import CheckpointError, ConfigError, EvaluationInvalid, Refuted, one_line

if TYPE_CHECKING:
    from torch import Tensor

    from certkit.language.positions import Moves
    from certkit.language.records import LanguageAudit, Stability
    from certkit.models.gpt import LanguageModel
    from certkit.records import Subject
    from certkit.text.tokens import Tokens
    from certkit.verification import Verification

SHOWN = 4  # contexts that the report spells out
TABLE = "positions.parquet"
NAMED = 8  # contradictions that the command spells out

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
    predicted token stays on top, of the exact function and of the program as it runs, and how far the log-probability of
    the true one may fall. Writes language.json, with ledgers that python -m certkit.bounds.ledger derives again,
    positions.parquet, and the campaign of the last positions; certkit verify proves them again. Exits with 4 when an example
    inside a certified radius refutes one of the claims: it is run again in float64 first, and kept.
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
    """The language model of a checkpoint, or of a folder of Hugging Face. Raises CheckpointError or ConfigError for any other."""
    from certkit.commands.loading import load_model
    from certkit.foreign import huggingface
    from certkit.foreign.text import language_model
    from certkit.models.gpt import LanguageModel

    if huggingface.is_folder(checkpoint):
        foreign = huggingface.load(checkpoint)
        return language_model(foreign), foreign.subject
    model, subject = load_model(checkpoint)
    if not isinstance(model, LanguageModel):
        raise CheckpointError(
            f"{one_line(checkpoint.name, 120)}: {subject.architecture} is no language model of certkit (gpt, gpt-layernorm)"
        )
    return model.eval(), subject


def read(model: LanguageModel, given: dict[str, Any]) -> tuple[Tokens, Tensor, Tensor]:
    """The text, its contexts and what follows each token. Raises ConfigError when the vocabulary is not the model's."""
    from certkit.text.tokenizers import GPT2_VOCABULARY
    from certkit.text.tokens import load_text

    tokens = load_text(given["data"], given["split"], tokenizer=given["tokenizer"])
    rows = len(table(model))
    if tokens.vocabulary != rows:
        other = "; give --tokenizer gpt2, or the folder with its files" if rows == GPT2_VOCABULARY else ""
        raise ConfigError(f"the text has a vocabulary of {tokens.vocabulary}, the model one of {rows}{other}")
    return tokens, *tokens.windows(given["context"] or model.context, given["contexts"])


def verified(directory: Path, given: dict[str, Any], told: Callable[..., list[str]]) -> tuple[Verification, list[str]]:
    """What ``certkit verify`` finds of a language audit, and its lines; the checkpoint and the text are read where named."""
    from certkit.language.stated import read as stated
    from certkit.text.tokens import load_text
    from certkit.verification import verify_language

    model = subject = text = None
    if given["checkpoint"] is not None:
        model, subject = load(given["checkpoint"])
    if given["data"] is not None:
        record = stated(directory).record.data
        tokenizer = "character" if record.tokenizer.startswith("character:") else record.tokenizer
        text = load_text(given["data"], record.split, tokenizer=tokenizer)
    names = {name: given[name] for name in ("samples", "seed")}
    found = verify_language(directory, model=model, subject=subject, text=text, **names)
    return found, told(found, None)


def replayed(directory: Path, number: int, checkpoint: Path, *, json: bool) -> None:
    """One contradiction of a language audit run again; exits with 4 where it refutes a claim, 3 where it does not come out again."""
    from certkit.language.contradictions import replay
    from certkit.language.stated import read as stated
    from certkit.language.stated import same_subject

    model, subject = load(checkpoint)
    held = stated(directory)
    same_subject(held.record, subject)
    found = replay(directory, held.record, held.table, model, number)
    one = found.stated
    where = f"context {one.context}, position {one.position}"
    lines = [
        f"{where}, {one.moves} moved by {one.attack}: {one_line(repr(''.join(one.text)), 120)}",
        f"certified   {one_line(repr(one.predicted), 40)} up to {one.radius:.9g} ({one.float_radius:.9g} as executed)",
        f"distance    stated {one.distance:.9g}, now {found.distance:.9g} (both rounded up)",
        f"prediction  token {found.answer}, certified token {found.held}",
        f"margin      {found.reference_margin:.6g} in float64",
        f"disproves   stated {one.refutes}, now {found.refutes}",
    ]
    told = {
        "stated": one.model_dump(mode="json"), "distance": found.distance, "reference_margin": found.reference_margin,
        "prediction": found.answer, "certified": found.held, "disproves": found.refutes, "reproduced": found.reproduced,
    }  # fmt: skip
    options.say(told, lines, json=json)
    if found.refutes != "float gap":
        raise Refuted(f"{where}: the example lies inside the certified radius and refutes the claim of {found.refutes}")
    if not found.reproduced:
        raise EvaluationInvalid(f"{where}: the example does not come out here as it is recorded")


def table(model: LanguageModel) -> Tensor:
    """The embeddings of all tokens."""
    found: Any = model.embed.weight
    return found.detach()  # type: ignore[no-any-return]


def chosen(text: str) -> list[Moves]:
    """The ways to choose tokens that ``--moves`` names, all first. Raises ConfigError."""
    from certkit.language.positions import Moves

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
    import torch

    from certkit.bounds.ledger import to_json
    from certkit.commands.falsify import attacked, campaign_of, substituted
    from certkit.files import digest_file, save
    from certkit.language import audit, positions
    from certkit.language.certificate import agreement, bounded, proof
    from certkit.language.contradictions import contradictions
    from certkit.language.execution import execution
    from certkit.language.records import Execution, LanguageAudit, Text
    from certkit.machine import environment, pinned, provenance
    from certkit.records import File, radii

    started, out = time.monotonic(), given["out"]
    ways, eps = chosen(given["moves"]), radii(options.radii(given["eps"]))
    model, subject = load(checkpoint)
    if table(model).dtype is not torch.float32:
        raise ConfigError(
            f"{one_line(checkpoint.name, 120)}: its weights are {str(table(model).dtype).removeprefix('torch.')}; examples are "
            "embeddings in float32, expected a language model of float32"
        )
    tokens, x, y = read(model, given)
    with pinned(given["threads"]) as count:
        bounds = bounded(model, x.shape[1], eps[-1].value)
        embedded = table(model)[x]
        found = proof(bounds, embedded, [at.value for at in eps])
        agreement(bounds, model, embedded, found)
        own = execution(bounds, found, embedded)
        proved = audit.positions(found, own, x.numpy(), y.numpy(), ways, eps)
        campaign = campaign_of(model, subject, bounds, tokens, embedded, y, given)
        replaced, known = substituted(model, proved, tokens, ways, given["seed"])
        distance, hits = attacked(model, proved, embedded, ways, eps, campaign, known, given)
        every = replace(proved, attacked=distance)
        against = contradictions(bounds, model, hits, every, ways, tokens, out)
    positions.write(every, out / TABLE, ways, eps)
    verdict, reason = audit.judged(against, campaign)
    record = LanguageAudit(
        subject=subject,
        program_sha256=bounds.program.sha256,
        data=Text(**tokens.record.model_dump()),
        context=x.shape[1],
        contexts=len(x),
        positions=x.numel(),
        verdict=verdict,
        verdict_reason=reason,
        clean=every.clean,
        loss=float(np.mean(every.loss)),
        slope=audit.slope(bounds, model),
        words=audit.words(table(model)),
        tried=tuple(found.radii.tolist()),
        curves=every.curves(ways, eps, executed=own.claim.holds),
        execution=Execution(**{name: getattr(own.claim, name) for name in Execution.model_fields}),
        losses=every.losses(eps),
        contradictions=against,
        campaign=audit.attacked_by(campaign),
        substitutions=replaced,
        shown=audit.shown(every, tokens, range(min(SHOWN, len(x)))),
        table=File(name=TABLE, sha256=digest_file(out / TABLE)),
        files=audit.files_of(campaign, out),
        ledger=to_json(bounds.everywhere),
        execution_ledger={} if bounds.deployed is None else to_json(bounds.deployed),
        pair_gain=tuple(tuple(number.to_float() for number in row) for row in bounds.everywhere.pairs.gain),
        pair_error=bounds.error,
        assumptions=audit.ASSUMPTIONS,
        environment=environment("cpu", count),
        provenance=provenance(started),
    )
    save(audit.sealed(record), out / "language.json")
    page: Path = importlib.import_module("certkit.reports.language").report(out)
    return record, page


def lines(found: LanguageAudit) -> list[str]:
    """The audit in a few lines."""
    from certkit.bounds.number import Up

    slope = found.slope
    nothing = ["certified        nothing at these radii: the bounds are sound, and too wide for this network"]
    told = [
        f"{found.verdict}: {found.verdict_reason}",
        *(nothing if found.certifies_nothing else []),
        f"next token       {options.share(found.clean)}, loss {found.loss:.4f}",
        f"Lipschitz        {Up.of(slope.sound).to_float():.6g} (RMS, all heads and scales; within {slope.reach:g} of the embeddings)",
    ]
    if slope.published is not None and slope.factor is not None:
        told.append(
            f"published        {slope.published:.6g} by the formula of arXiv 2507.13338: too small by {slope.factor:.4g}"
        )
    if found.execution.reasons:
        told.append(f"execution        nothing is claimed: {found.execution.reasons[0]}")
    for curve in found.curves:
        told.append(
            f"{curve.moves} moving, {curve.positions} positions{'' if curve.positions == 'all' else ' of contexts'}; "
            f"median radius {curve.median_radius:.4g} ({curve.median_float_radius:.4g} as executed), "
            f"contradictions {curve.contradictions}"
        )
        own = [f", {options.share(at.certified)} as executed" for at in curve.executed] or [""] * len(curve.certified)
        for proved, executed, attacked in zip(curve.certified, own, curve.attacked, strict=True):
            told.append(
                f"  {proved.eps.text:<10}{options.share(proved.certified) + executed:<52}"
                f"under attack {options.share(attacked.robust, up=True)}"
            )
    for number, one in enumerate(found.contradictions[:NAMED]):
        told.append(
            f"inside a radius  {number}: context {one.context}, position {one.position}: {one.refutes}, "
            f"margin {one.reference_margin:.6g} in float64"
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
