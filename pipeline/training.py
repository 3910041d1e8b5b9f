"""The two workflows: from the data to a registered version, and from a registered version to the model folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline import data, evaluation, gate, model_folder, onnx_export, registry, terminal
from pipeline.data import Data
from pipeline.dataset import MODEL_NAME
from pipeline.evaluation import Evaluation
from pipeline.names import PRODUCTION_ALIAS, Algorithm


def train(algorithms: Sequence[Algorithm], seed: int, out: Path, uri: str) -> list[str]:
    """Train the candidates, register the winner, and export it. Raises PipelineError.

    Return the gate's reasons to reject the winner; if there are any, nothing is registered or exported.
    """
    model_folder.require_model_folder(out)
    loaded = data.load()
    terminal.say("data", f"{len(loaded.train_rows)} training rows, {len(loaded.test_rows)} held out")
    with registry.connected(uri):
        with registry.training_run(loaded, seed):
            runs = {algorithm: _evaluate(algorithm, loaded, seed) for algorithm in algorithms}
            candidates = [candidate for _, candidate in runs.values()]
            winner = gate.choose(candidates)
            terminal.results(candidates, winner)
            onnx = onnx_export.convert(winner.model)
            reasons = _judge(winner, onnx, loaded, seed)
            registry.log_verdict(winner, reasons)
        if reasons:
            return reasons
        run_id, _ = runs[winner.algorithm]
        metadata = model_folder.describe(winner, loaded, onnx)
        model_folder.text(metadata)  # before the registration: a model that cannot be delivered is not a version
        if number := registry.registered(metadata, loaded.digest):
            terminal.say("registered", f"{MODEL_NAME} version {number} already is this model")
        else:
            number = registry.register(run_id, onnx, metadata, _tags(winner, loaded, seed, metadata["sha256"]))
            terminal.say("registered", f"{MODEL_NAME} version {number}, {winner.algorithm}")
        _export(number, out)
        registry.set_production(number)
        terminal.say("alias", f"{PRODUCTION_ALIAS} points to version {number}")
    return []


def export(version: int | None, alias: str, out: Path, uri: str) -> None:
    """Write the model folder from a version, or else from the one that has the alias. Raises PipelineError."""
    with registry.connected(uri):
        _export(str(version) if version else registry.version_of(alias), out)


def _evaluate(algorithm: Algorithm, loaded: Data, seed: int) -> tuple[str, Evaluation]:
    with registry.candidate_run(algorithm, loaded) as run_id:
        candidate = evaluation.evaluate(algorithm, loaded, seed)
        registry.log_evaluation(candidate)
    terminal.say("trained", algorithm.value)
    return run_id, candidate


def _judge(winner: Evaluation, onnx: bytes, loaded: Data, seed: int) -> list[str]:
    rows = np.vstack([loaded.features, onnx_export.random_rows(seed)])
    parity = onnx_export.compare(winner.model, onnx, rows)
    terminal.say(
        "parity",
        f"ONNX differs from scikit-learn in {parity.wrong_labels} of {parity.rows} labels, "
        f"and by up to {parity.difference:.1e} in a probability",
    )
    best = registry.best_metrics(loaded.digest)
    if best is None and (number := registry.production()):
        terminal.say(
            "gate", f"cannot compare with version {number}, which was measured on other data: floors only"
        )
    return gate.check(gate.metrics(winner), best, parity)


def _tags(winner: Evaluation, loaded: Data, seed: int, sha256: str) -> dict[str, str]:
    """Return the tags of the registered version; the gate compares later candidates with its metrics."""
    metrics = {name: repr(value) for name, value in gate.metrics(winner)._asdict().items()}
    return metrics | {
        "algorithm": winner.algorithm.value,
        "sha256": sha256,
        "test_f1": repr(winner.test.f1),
        "seed": str(seed),
        "data_sha256": loaded.digest,
    }


def _export(number: str, out: Path) -> None:
    model_folder.write(out, *registry.fetch(number))
    terminal.say("exported", f"version {number} to {out}")
