"""certkit verify on a language audit: one byte names its file, and what is forged with all that follows is found out."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from certkit.attacks.language import token_distance
from certkit.bounds.ledger import to_json
from certkit.bounds.number import Up
from certkit.campaign import load_campaign
from certkit.commands.falsify import substituted
from certkit.commands.language import load as load_network
from certkit.errors import CertkitError, CheckpointError, DataError, RecordError, Tampered
from certkit.files import digest, digest_file, load, save
from certkit.language import audit, contradictions, positions, verification
from certkit.language.certificate import Bounded, bounded
from certkit.language.contradictions import judge
from certkit.language.execution import UNWRITTEN
from certkit.language.positions import Positions
from certkit.language.records import Contradiction, LanguageAudit
from certkit.language.stated import Stated, _asked, read
from certkit.models.gpt import LanguageModel
from certkit.records import File
from certkit.reports.language import report
from certkit.text.tokens import load_text
from certkit.verification import verify_language
from tests import languages
from tests.languages import run
from tests.test_verify import forged as with_evidence

CHECKPOINT: dict[str, Any] = {"samples": 1, "seed": 0}


@pytest.fixture(scope="module")
def honest() -> Path:
    out, result = languages.audited()
    assert result.exit_code in (0, 3), result.output
    return out


@pytest.fixture(autouse=True, scope="module")
def once() -> Iterator[None]:
    """The bounds of the one network of this file are derived once."""
    known: dict[tuple[int, float], Bounded] = {}

    def remembered(model: LanguageModel, context: int, reach: float) -> Bounded:
        if (context, reach) not in known:
            known[context, reach] = bounded(model, context, reach)
        return known[context, reach]

    with pytest.MonkeyPatch.context() as patch:
        for module in (verification, contradictions):
            patch.setattr(module, "bounded", remembered)
        yield


@pytest.fixture
def folder(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "out"))


def resealed(folder: Path, record: LanguageAudit, table: Positions | None = None) -> None:
    """Write a forged record, with everything that follows from its rows and contradictions, its seal and its page."""
    if table is not None:
        ways, eps = _asked(record)
        positions.write(table, folder / record.table.name, ways, eps)
        verdict, reason = audit.judged(record.contradictions, load_campaign(folder))
        record = record.model_copy(
            update={
                "table": File(name=record.table.name, sha256=digest_file(folder / record.table.name)),
                "clean": table.clean,
                "loss": float(np.mean(table.loss)),
                "curves": table.curves(ways, eps, executed=record.execution.pair_error is not None),
                "losses": table.losses(eps),
                "shown": tuple(one.model_copy(update=audit.figures(table, one.context)) for one in record.shown),
                "verdict": verdict,
                "verdict_reason": reason,
            }
        )
    save(audit.sealed(record), folder / "language.json")
    report(folder)


def changed(values: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    made = values.copy()
    made[place] = value
    return made


def given() -> dict[str, Any]:
    model, subject = load_network(languages.network())
    return {"model": model, "subject": subject, **CHECKPOINT}


def test_an_honest_audit_is_proved_again(folder: Path) -> None:
    text = load_text(str(languages.text()), "test")
    found = verify_language(folder, text=text, **(given() | {"samples": 9}))
    assert [one.what for one in found.verified] == [
        "positions.parquet", "ledgers", "campaign", "language.json", "report.html", "checkpoint", "graph", "ledger",
        "execution_ledger", "radii and losses", "agreement", "text",
    ]  # fmt: skip
    assert {one.what for one in found.not_verified} == {
        "campaign/log.jsonl",
        "attacks",
        "names and times",
        "assumption",
    }


def test_without_checkpoint_and_text_what_they_would_show_is_named_as_open(folder: Path) -> None:
    result = run("verify", folder)
    assert result.exit_code == 0, result.output
    for what in ("evidence", "radii and losses", "text"):
        assert f"NOT verified  {what}: " in result.output


FILES = ["language.json", "positions.parquet", "report.html", "campaign/plan.json", "campaign/checks.json", "shards"]


@pytest.mark.parametrize("name", FILES)
def test_one_byte_in_any_file_names_the_file(folder: Path, name: str) -> None:
    paths = sorted((folder / "campaign/shards").glob("*.parquet")) if name == "shards" else [folder / name]
    for path in paths:
        data = path.read_bytes()
        for share in (0.0, 0.03, 0.5, 0.9, 1.0):
            place = min(int(share * len(data)), len(data) - 1)
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            with pytest.raises(CertkitError) as caught:
                verify_language(folder, samples=1)
            assert path.name in str(caught.value)
            path.write_bytes(data)
    verify_language(folder, samples=1)


def test_every_byte_of_the_record_counts(folder: Path) -> None:
    path = folder / "language.json"
    data = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(data), 60).tolist():
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(CertkitError, match=r"^language\.json: "):
            read(folder)


@pytest.mark.parametrize("name", ["language.json", "positions.parquet", "campaign/plan.json", "campaign/checks.json"])
def test_a_file_that_is_missing_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CertkitError, match=Path(name).name):
        read(folder)


def test_files_that_are_no_part_of_it_are_named(folder: Path) -> None:
    (folder / "notes.txt").write_text("x")
    assert "NOT verified  notes.txt: is read by nothing" in run("verify", folder).output


# --- Forged, with all that follows ------------------------------------------------------------------------------------

Forgery = Callable[[LanguageAudit, Positions], tuple[LanguageAudit, Positions | None]]


def count(record: LanguageAudit, table: Positions) -> tuple[LanguageAudit, None]:
    curve = record.curves[0]
    at = curve.certified[1]
    more = at.model_copy(update={"certified": at.certified.model_copy(update={"count": at.certified.count + 1})})
    forged = curve.model_copy(update={"certified": (curve.certified[0], more, *curve.certified[2:])})
    return record.model_copy(update={"curves": (forged, *record.curves[1:])}), None


def stated(**fields: Any) -> Forgery:
    return lambda record, table: (record.model_copy(update=fields), None)


def row(name: str, place: tuple[int, ...], value: float) -> Forgery:
    return lambda record, table: (record, replace(table, **{name: changed(getattr(table, name), place, value)}))


def replaced(**fields: Any) -> Forgery:
    """The first text with replaced tokens, changed."""

    def forge(record: LanguageAudit, table: Positions) -> tuple[LanguageAudit, None]:
        first, *rest = record.substitutions
        return record.model_copy(update={"substitutions": (first.model_copy(update=fields), *rest)}), None

    return forge


FORGERIES: list[tuple[str, Forgery, str]] = [
    ("a count", count, r"^language\.json: curves is not what the files beside it give"),
    ("the loss", stated(loss=0.0), r"^language\.json: loss is not"),
    ("the verdict", stated(verdict="REFUTED"), r"^language\.json: verdict is not"),
    ("its reason", stated(verdict_reason="all is well"), r"^language\.json: verdict_reason is not"),
    ("an error", stated(pair_error=0.0), r"^language\.json: pair_error is not what its ledgers give"),
    ("a slope", stated(pair_gain=((0.0,),)), r"^language\.json: pair_gain is not what its ledgers give"),
    ("assumptions", stated(assumptions=()), r"^language\.json: assumptions leaves out 'exp"),
    ("radii tried", stated(tried=(1.0,)), r"^language\.json: tried does not hold"),
    ("a context", stated(context=7), r"^positions\.parquet: not the positions of this audit \(24 rows, not 3 contexts of 7"),
    ("a length", stated(contexts=2**60), r"^positions\.parquet: not the positions of this audit"),
    ("no ledger of a claim", stated(execution_ledger={}), r"^language\.json: execution is not what its ledgers give"),
    ("a word inside a radius", replaced(broken=True, distance=1e-9), r"^positions\.parquet: context 0: its replaced tokens"),
    ("no files", stated(files=()), r"^language\.json: files are not those of the campaign"),
    ("another radius", row("radius", (0, 0, 0), 0.5), r"^positions\.parquet: states a radius that was never tried"),
    ("a huge radius", row("radius", (1, 0, 0), 9.0), r"^positions\.parquet: states a radius beyond the bounds"),
    ("a small radius", row("radius", (1, 0, 0), 0.0), r"^positions\.parquet: states a radius of few tokens below"),
    ("a float radius", row("float_radius", (0, 0, 0), 8.0), r"^positions\.parquet: states a radius of the execution above"),
    ("no room", row("room", (0, 0), 0.0), r"^positions\.parquet: states a radius without room"),
    ("a token", row("token", (0, 0), 99), r"^positions\.parquet: states a token outside the vocabulary"),
    ("another token", row("token", (0, 1), 0), r"^positions\.parquet: states a next token that the text does not have"),
    ("a wrong right", row("predicted", (0, 0), 0), r"^positions\.parquet: states right where another token is predicted"),
    ("no number", row("lost", (0, 0, 0), np.nan), r"^positions\.parquet: not the positions of this audit"),
    ("a far attack", row("attacked", (0, 0, 7), np.inf), r"^positions\.parquet: an attacked distance is above"),
    ("an attack inside", row("attacked", (0, 0, 0), 0.0), r"^language\.json: contradictions are not the positions"),
]  # fmt: skip


@pytest.mark.parametrize(("forge", "message"), [pytest.param(f, m, id=i) for i, f, m in FORGERIES])
def test_a_forgery_contradicts_the_files(folder: Path, forge: Forgery, message: str) -> None:
    held = read(folder)
    resealed(folder, *forge(held.record, held.table))
    with pytest.raises(CertkitError, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("substitutions", "after", ["a"]),
        ("substitutions", "places", [99]),
        ("substitutions", "places", []),
        ("shown", "true", []),
        ("shown", "attacked", [None]),
        ("curves", "attacked", []),
        ("curves", "certified", []),
    ],
)
def test_a_part_that_is_not_whole_is_no_record(folder: Path, part: str, field: str, value: Any) -> None:
    record = json.loads((folder / "language.json").read_text(encoding="utf-8"))
    assert record["substitutions"][0]["places"]
    record[part][0][field] = value
    (folder / "language.json").write_text(json.dumps(record), encoding="utf-8")
    for reads in (read, report):
        with pytest.raises(RecordError, match=r"^language\.json: "):
            reads(folder)


def test_an_audit_whose_execution_has_no_bound_is_proved_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = read(folder)
    none = np.zeros_like(held.table.float_radius)
    nothing = held.record.execution.model_copy(update={"pair_error": None, "reasons": (UNWRITTEN,), "assumptions": ()})
    record = held.record.model_copy(update={"execution_ledger": {}, "execution": nothing})
    resealed(folder, record, replace(held.table, float_radius=none))
    plain = verification.bounded
    monkeypatch.setattr(verification, "bounded", lambda *words: replace(plain(*words), deployed=None))
    found = verify_language(folder, **given())
    assert "radii and losses" in [one.what for one in found.verified]
    assert ("execution_ledger", "is none, as nothing is claimed of the execution") in [
        (one.what, one.how) for one in found.not_verified
    ]


def test_replaced_tokens_inside_a_radius_are_hits(folder: Path) -> None:
    held, text = read(folder), load_text(str(languages.text()), "test")
    model, _ = load_network(languages.network())
    assert substituted(model, held.table, text, held.ways, 0) == (held.record.substitutions, [])
    far = replace(held.table, radius=np.full_like(held.table.radius, 1e3))
    told, hits = substituted(model, far, text, held.ways, 0)
    broken = [one for one in told if one.broken]
    assert broken
    assert {(hit.context, hit.attack, hit.distance) for hit in hits} == {
        (one.context, one.kind, one.distance) for one in broken
    }
    few = {hit.way for hit in hits if len(next(o for o in broken if o.distance == hit.distance).places) > 1}
    assert all(held.ways[place].tokens != 1 for place in few)
    for hit, one in zip(hits, judge(bounded(model, 8, 1e3), model, [h.example for h in hits], [7] * len(hits),
                                    [int(far.predicted[h.context, 7]) for h in hits]), strict=True):  # fmt: skip
        assert one.margin <= 0
        x = model.embed.weight[far.token[hit.context]].detach()  # type: ignore[index, union-attr]
        assert hit.distance == token_distance(x[None], hit.example[None])[0]


def test_a_radius_that_was_tried_and_not_proved_takes_the_checkpoint(folder: Path) -> None:
    held = read(folder)
    nearest = float(held.table.attacked[:, 0, 0].min())  # no example contradicts it
    radius = held.table.radius.copy()
    radius[:, 0, 0] = max(tried for tried in held.record.tried if tried < nearest)
    assert radius[0, 0, 0] > held.table.radius[0, 0, 0]
    table = replace(held.table, radius=radius)
    resealed(folder, held.record, table)
    read(folder)  # the files agree with one another
    with pytest.raises(
        Tampered, match=r"^positions\.parquet: context \d, position \d: its stated radius_all is larger"
    ):
        verify_language(folder, **(given() | {"samples": 3}))


@pytest.mark.parametrize(
    ("name", "factor", "message"),
    [
        ("float_radius", 1.01, "float_radius_all is larger than what is proved"),
        ("radius", 1.01, "radius_all is larger than what is proved"),
        ("room", 1.01, "room is larger than what is proved"),
        ("lost", 0.99, "lost_0.01 is smaller than what is proved"),
        ("changed", 0.99, "changed_0.01 is smaller than what is proved"),
        ("loss", 0.5, "loss is not the one that is computed"),
    ],
)
def test_rows_that_are_better_than_proved_are_named(honest: Path, name: str, factor: float, message: str) -> None:
    held = read(honest)
    rows = np.arange(3)
    table = replace(held.table, loss=held.table.loss + 1.0, lost=held.table.lost + 1.0)
    verification._compare(replace_table(held, table), table, rows)  # the same is never better
    forged = replace(table, **{name: getattr(table, name) * factor})
    with pytest.raises(Tampered, match=rf"^positions\.parquet: context 0, position 0: its stated {message} here"):
        verification._compare(replace_table(held, forged), table, rows)
    worse = replace(table, **{name: getattr(table, name) / factor})
    if name != "loss":
        verification._compare(replace_table(held, worse), table, rows)


def replace_table(held: Stated, table: Positions) -> Stated:
    return replace(held, table=table)


def test_evidence_that_was_lowered_with_all_that_follows_takes_the_checkpoint(folder: Path) -> None:
    held = read(folder)
    place = next(n for n, step in enumerate(held.ledger.steps) if step.rule == "linear")

    def lowered(evidence: dict[str, Up]) -> None:
        evidence |= {key: number * Up.of("0.5") for key, number in evidence.items()}

    ledger, deployed = (with_evidence(one, lowered, place) for one in (held.ledger, held.deployed))
    record = held.record.model_copy(
        update={
            "ledger": to_json(ledger),
            "execution_ledger": to_json(deployed),
            "pair_gain": tuple(tuple(number.to_float() for number in line) for line in ledger.pairs.gain),
            "pair_error": ledger.pairs.error.to_float(),
            "execution": held.record.execution.model_copy(update={"pair_error": deployed.pairs.error.to_float()}),
            "slope": audit.compared(ledger, held.record.slope.reach, held.record.slope.published),
        }
    )
    resealed(folder, record)
    read(folder)
    with pytest.raises(Tampered, match=r"^ledger: .* is below the .* measured from the weights"):
        verify_language(folder, **given())


def test_another_checkpoint_and_another_text_are_told_apart(folder: Path, tmp_path: Path) -> None:
    model, subject = load_network(languages.network())
    other = subject.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(CheckpointError, match=r"^the checkpoint has sha256 000000000000…, the audit is of"):
        verify_language(folder, model=model, subject=other, **CHECKPOINT)
    with pytest.raises(Tampered, match=r"^language\.json: states \d+ parameters, the checkpoint has 1;"):
        verify_language(folder, model=model, subject=subject.model_copy(update={"parameters": 1}), **CHECKPOINT)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "all.txt").write_text(languages.LETTERS[::-1] * 90, encoding="utf-8")
    result = run("verify", folder, "--data", tmp_path / "text")
    assert result.exit_code == 2
    assert "the text has sha256" in result.output
    with pytest.raises(DataError):
        verify_language(folder, text=load_text(str(tmp_path / "text"), "test"), **CHECKPOINT)


# --- Contradictions ---------------------------------------------------------------------------------------------------


def planted(folder: Path, refutes: str = "float gap") -> None:
    """An audit that states an example inside a radius: the text itself, which its program reads right."""
    held = read(folder)
    vectors = held_embeddings(held)
    name = "refutations/context-0-position-2.npy"
    (folder / "refutations").mkdir()
    buffer = io.BytesIO()
    np.save(buffer, vectors)
    (folder / name).write_bytes(buffer.getvalue())
    ids, text = held.table, load_text(str(languages.text()), "test")
    one = Contradiction(
        context=0, position=2, moves="every token", attack="clean", distance=0.0,
        radius=float(ids.radius[0, 0, 2]), float_radius=float(ids.float_radius[0, 0, 2]),
        refutes=refutes, reference_margin=-1.0 if refutes == "exact arithmetic" else 1.0,
        text=audit.spelled(text, ids.token[0, :3]), predicted=text.decode([int(ids.predicted[0, 2])]), rival="a",
        example=File(name=name, sha256=digest(buffer.getvalue())),
    )  # fmt: skip
    table = replace(ids, attacked=changed(ids.attacked, (0, 0, 2), 0.0))
    resealed(folder, held.record.model_copy(update={"contradictions": (one,)}), table)


def held_embeddings(held: Stated) -> np.ndarray:
    model, _ = load_network(languages.network())
    rows: Any = model.embed.weight
    return np.asarray(rows.detach().numpy()[held.table.token[0]])


def test_a_float_gap_is_judged_again_and_shown(folder: Path) -> None:
    planted(folder)
    record = load(LanguageAudit, folder / "language.json")
    assert record.verdict in ("NOT REFUTED", "INCONCLUSIVE")
    assert record.curves[0].contradictions == 1
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "<td>float gap</td>" in html
    assert "refutations/context-0-position-2.npy" in html
    found = verify_language(folder, **given())
    assert "contradictions" in [one.what for one in found.verified]
    result = run("replay", folder, 0, "--checkpoint", languages.network(), "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert (told["disproves"], told["distance"], told["reproduced"]) == ("float gap", 0.0, True)


def test_a_contradiction_whose_example_is_left_out_is_named(folder: Path) -> None:
    planted(folder)
    record = load(LanguageAudit, folder / "language.json")
    (one,) = record.contradictions
    resealed(folder, record.model_copy(update={"contradictions": (one.model_copy(update={"example": None}),)}))
    with pytest.raises(
        Tampered, match=r"^language\.json: the example of a contradiction is left out; the 64 that disprove"
    ):
        read(folder)


def test_a_refutation_that_the_network_does_not_bear_out_is_forged(folder: Path) -> None:
    planted(folder, "exact arithmetic")
    assert load(LanguageAudit, folder / "language.json").verdict == "REFUTED"
    read(folder)
    with pytest.raises(Tampered, match=r"position 2 disproves here: float gap, and not: exact arithmetic"):
        verify_language(folder, **given())
    result = run("replay", folder, 0, "--checkpoint", languages.network())
    assert result.exit_code == 3
    assert "does not come out here as it is recorded" in result.output


def test_an_example_and_a_number_that_are_not_there_are_refused(folder: Path) -> None:
    result = run("replay", folder, 0, "--checkpoint", languages.network())
    assert result.exit_code == 2
    assert "contradiction 0: this audit has 0, counted from 0" in result.output
    planted(folder)
    (folder / "refutations/context-0-position-2.npy").write_bytes(b"x")
    with pytest.raises(Tampered, match=r"^refutations/context-0-position-2\.npy: is missing or is not what"):
        read(folder)
