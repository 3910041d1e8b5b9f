"""The wiring: from the data to a registered version, and from a registered version to the model folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline import data, evaluation, gate, model_folder, onnx_export, registry
from pipeline.data import Data
from pipeline.dataset import MODEL_NAME
from pipeline.errors import Refused
from pipeline.evaluation import Evaluation
from pipeline.model_folder import Document
from pipeline.names import CHAMPION, Algorithm
from pipeline.terminal import Terminal


def train(algorithms: Sequence[Algorithm], seed: int, out: Path, uri: str, terminal: Terminal) -> None:
    """Train, choose, judge, register, export; raise Refused, with nothing registered, if the gate says no."""
    model_folder.refuse_other(out)
    loaded = data.load()
    terminal.say("data", f"{len(loaded.train_rows)} rows to learn from, {len(loaded.test_rows)} held out")
    with registry.connected(uri):
        with registry.training_run(loaded, seed):
            runs = {algorithm: _evaluate(algorithm, loaded, seed, terminal) for algorithm in algorithms}
            candidates = [candidate for _, candidate in runs.values()]
            winner = gate.choose(candidates)
            terminal.results(candidates, winner)
            onnx = onnx_export.convert(winner.model)
            reasons = _judge(winner, onnx, loaded, seed, terminal)
            registry.log_verdict(winner, reasons)
        if reasons:
            raise Refused(reasons)
        run_id, _ = runs[winner.algorithm]
        facts = model_folder.facts(winner, loaded, onnx)
        number = registry.register(run_id, onnx, facts, _tags(winner, loaded, seed, facts["sha256"]))
        terminal.say("registered", f"{MODEL_NAME} version {number}, {winner.algorithm}")
        _export(number, out, terminal)
        registry.promote(number)
        terminal.say("alias", f"{CHAMPION} is version {number}")


def export(version: str | None, alias: str, out: Path, uri: str, terminal: Terminal) -> None:
    """Rebuild the model folder from a version, or from the one that carries the alias."""
    with registry.connected(uri):
        _export(version or registry.find(alias), out, terminal)


def _evaluate(algorithm: Algorithm, loaded: Data, seed: int, terminal: Terminal) -> tuple[str, Evaluation]:
    with registry.candidate_run(algorithm, loaded) as run_id:
        candidate = evaluation.evaluate(algorithm, loaded, seed)
        registry.log_evaluation(candidate)
    terminal.say("trained", algorithm.value)
    return run_id, candidate


def _judge(winner: Evaluation, onnx: bytes, loaded: Data, seed: int, terminal: Terminal) -> list[str]:
    rows = np.vstack([loaded.features, onnx_export.random_rows(seed)])
    parity = onnx_export.compare(winner.model, onnx, rows)
    champion = registry.champion()
    terminal.say(
        "parity", f"{parity.wrong_labels} of {parity.rows} labels differ, probabilities by {parity.difference:.1e}"
    )
    return gate.check(gate.figures(winner), champion, parity)


def _tags(winner: Evaluation, loaded: Data, seed: int, sha256: str) -> dict[str, str]:
    """Return what the registry keeps with the version; a challenger is compared with its figures."""
    figures = {name: repr(value) for name, value in gate.figures(winner)._asdict().items()}
    return figures | {
        "algorithm": winner.algorithm.value,
        "sha256": sha256,
        "test_f1": repr(winner.test.f1),
        "seed": str(seed),
        "data_sha256": loaded.digest,
    }


def _export(number: str, out: Path, terminal: Terminal) -> None:
    stored = registry.fetch(number)
    model_folder.verify(stored.onnx, stored.sha256, stored.facts)
    document = Document(
        **stored.facts,
        name=MODEL_NAME,
        version=stored.version,
        run_id=stored.run_id,
        golden_tolerance=onnx_export.TOLERANCE,
    )
    model_folder.write(out, stored.onnx, document)
    terminal.say("exported", f"version {number} to {out}")
