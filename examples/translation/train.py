"""The job: from a configuration to a trained, evaluated, reported run."""

import contextlib
import dataclasses
import json
import math
import os
import sys
import time

import keras

import keras_adafactor
from examples.translation import STARTED
from examples.translation import batching
from examples.translation import callbacks
from examples.translation import report
from examples.translation.checkpoint import Checkpoints
from examples.translation.checkpoint import TrainingState
from examples.translation.devices import check_alike
from examples.translation.devices import choose_devices
from examples.translation.devices import gathered
from examples.translation.devices import undistributed
from examples.translation.errors import UserError
from examples.translation.errors import notice
from examples.translation.evaluate import evaluate_splits
from examples.translation.evaluate import read_pairs
from examples.translation.evaluate import score_splits
from examples.translation.evaluate import translate_pairs
from examples.translation.files import write_atomically
from examples.translation.losses import SmoothedCrossEntropy
from examples.translation.losses import means_over_pieces
from examples.translation.optimizers import accumulates_on_replicas
from examples.translation.optimizers import build_optimizer
from examples.translation.optimizers import describe_optimizer
from examples.translation.runs import build_run_model
from examples.translation.runs import build_translator
from examples.translation.runs import check_same_run
from examples.translation.runs import checkpoint_directory
from examples.translation.runs import load_initial_weights
from examples.translation.runs import locked
from examples.translation.runs import open_corpus
from examples.translation.runs import run_directory
from examples.translation.runs import run_tokenizer
from examples.translation.runs import start_naming
from examples.translation.termination import Termination


def train(config, termination=None):
    """Trains, evaluates and reports; continues what an earlier call began.

    Args:
        config: `TranslationConfig`.
        termination: `Termination` to heed; the run is saved before it raises
            `Terminated`.

    Returns:
        The metrics that are also in `metrics.json`.

    Raises:
        Terminated: SIGTERM or Ctrl-C came. The same call continues the run.
        UserError: The run cannot be done, or is not the one in `run_dir`.
    """
    with prepared(config) as job:
        job.fit(termination or Termination())
        return job.finish()


@contextlib.contextmanager
def prepared(config):
    """Opens the run of a configuration, a new one or the one that is there.

    Args:
        config: `TranslationConfig`.

    Yields:
        `Job`, whose directory is locked and whose settings are written.

    Raises:
        UserError: The run cannot be done, or is not the one in `run_dir`.
    """
    start_naming()
    devices = choose_devices(
        config.strategy,
        config.virtual_devices,
        config.model_parallel,
        fully_sharded=config.sharding == "fully_sharded",
    )
    check_devices(config, devices)
    with silent_unless_first(devices):
        corpus = open_corpus(config)
        run_dir = run_directory(config, corpus.kind)
        with locked(run_dir, devices.process), explained(run_dir):
            yield open_job(config, run_dir, corpus, devices)


def open_job(config, run_dir, corpus, devices):
    """Returns the `Job` of a locked directory; its settings are written."""
    tokenizer = run_tokenizer(config, corpus, run_dir)
    check_vocabulary(config, tokenizer)
    check_alike(
        devices,
        {
            "the settings": config.but_for_paths(),
            "the sentences": corpus.fingerprint,
            "the vocabulary": tokenizer.fingerprint,
        },
    )
    checkpoints = Checkpoints(
        checkpoint_directory(config, run_dir),
        interval=config.checkpoint_every,
        keep=config.keep_checkpoints,
        identity={
            "corpus fingerprint": corpus.fingerprint,
            "vocabulary fingerprint": tokenizer.fingerprint,
            "backend": keras.backend.backend(),
            "rows of a batch": [
                batching.rows_of(
                    length,
                    config.tokens_per_batch,
                    config.batch_size,
                    devices.replicas,
                )
                for length in config.bucket_lengths
            ],
        },
    )
    check_same_run(config, run_dir, checkpoints)
    checkpoints.check_identity()
    done = max(checkpoints.steps(), default=0)
    if config.steps < done:
        raise UserError(
            f"--steps must be at least the {done:,} that the run in "
            f"{run_dir} has done. Received: {config.steps:,}"
        )
    if devices.process == 0:
        write_atomically(run_dir / "config.json", config.to_json())
        tokenizer.save(run_dir / "tokenizer.model")
    print(f"run directory: {run_dir}")
    print(f"data: {corpus.name}")
    print(f"devices: {devices.description}")
    print(f"optimizer: {describe_optimizer(config)}")
    print(config.to_json(), flush=True)
    return Job(config, run_dir, corpus, tokenizer, devices, checkpoints)


@contextlib.contextmanager
def silent_unless_first(devices):
    """Leaves talking to the first process; what it raises, each one tells."""
    if devices.process == 0:
        yield
        return
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


@contextlib.contextmanager
def explained(run_dir):
    """Says of a full disk, and the like, which run it stopped."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(
            f"The run in {run_dir} was stopped: {error}. The same command "
            "continues it."
        ) from error


class Job:
    """Model, optimizer and data of a run, ready to train and evaluate."""

    def __init__(
        self, config, run_dir, corpus, tokenizer, devices, checkpoints
    ):
        self.config = config
        self.run_dir = run_dir
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.devices = devices
        self.checkpoints = checkpoints
        self.state = TrainingState()
        self.training_data = self._encode("train", drop_long=True)
        self.plan = batching.make_plan(
            self.training_data,
            batching=config.batching,
            tokens_per_batch=config.tokens_per_batch,
            batch_size=config.batch_size,
            bucket_lengths=config.bucket_lengths,
            max_length=config.max_length,
            seed=config.seed,
            multiple_of=devices.replicas,
        )
        keras.utils.set_random_seed(config.seed)
        with devices.scope():
            self.model = build_run_model(config, tokenizer)
            self.compile(build_optimizer(config))
        self.translator = build_translator(config, tokenizer, self.model)

    def compile(self, optimizer):
        """Gives the model an optimizer, and builds it."""
        config = self.config
        loss = SmoothedCrossEntropy(
            config.label_smoothing, self.tokenizer.piece_count
        )
        self.model.compile(
            optimizer=optimizer,
            loss=loss,
            weighted_metrics=[
                *means_over_pieces(loss),
                callbacks.TokenCount(name="tokens"),
            ],
            jit_compile=config.jit_compile != "off"
            and self.devices.takes_jit_compile,
            steps_per_execution=config.steps_per_execution,
        )
        # compile wraps it for float16; the state is that of the wrapper.
        self.optimizer = self.model.optimizer
        self.optimizer.build(self.model.trainable_variables)

    def _encode(self, split, drop_long):
        return batching.encode_split(
            self.corpus,
            split,
            self.tokenizer,
            self.run_dir / "cache",
            self.config.max_length,
            drop_long,
        )

    def fit(self, termination, *more_callbacks):
        """Trains up to the last step, from the newest checkpoint if any."""
        config = self.config
        restored = self.checkpoints.restore(self.model, self.optimizer)
        if restored:
            self.state = restored
            notice(f"Continuing from step {restored.step:,}.")
        elif config.init_from:
            load_initial_weights(config, self.model)
        validation = batching.eval_dataset(
            self._encode("validation", drop_long=False),
            _round_up(config.evaluation_batch_size, self.devices.replicas),
            config.bucket_lengths[-1:]
            if self.devices.on_tpu
            else config.bucket_lengths,
            self.devices.part,
        )
        if self.devices.joined:
            termination.agree()
        hooks = [*self._callbacks(termination), *more_callbacks]
        every = config.checkpoint_every
        with termination.deferred():
            try:
                while (
                    self.state.step < config.steps
                    and not self.state.has_stalled(config.patience)
                ):
                    # Keras' epochs are the intervals between checkpoints. The
                    # first may be the rest of one that SIGTERM cut short, the
                    # last may be shorter.
                    step = self.state.step
                    length = min(every - step % every, config.steps - step)
                    count = (
                        (config.steps - step) // every if length == every else 1
                    )
                    self.model.fit(
                        batching.train_dataset(
                            self.training_data,
                            self.plan,
                            start_step=step,
                            part=self.devices.part,
                        ),
                        initial_epoch=step // every,
                        epochs=step // every + count,
                        steps_per_epoch=length,
                        validation_data=validation,
                        callbacks=hooks,
                        shuffle=False,
                        verbose=0,
                    )
            finally:
                self.checkpoints.wait()
        if self.state.has_stalled(config.patience):
            notice(
                f"Stopped after step {self.state.step:,}: the validation loss "
                f"has not fallen for {config.patience} checkpoints."
            )

    def _callbacks(self, termination):
        config, state = self.config, self.state

        first = self.devices.process == 0

        def save(model, state):
            self.checkpoints.save(model, model.optimizer, state)
            if first:
                write_atomically(
                    self.run_dir / "history.csv",
                    report.history_csv(state.history),
                )

        samples = None
        if config.bleu_every:
            samples = callbacks.TranslateSamples(
                state,
                self.translator,
                read_pairs(self.corpus, "validation", config.bleu_sentences),
                interval=config.checkpoint_every,
                every=config.bleu_every,
            )
        progress = (
            callbacks.ShowProgress
            if sys.stdout.isatty()
            else callbacks.PrintProgress
        )
        hooks = [
            callbacks.AdvanceState(state),
            callbacks.StopOnTermination(termination, state, save),
            self.devices.in_lockstep and callbacks.WaitForEachBatch(),
            callbacks.StopOnNonFiniteLoss(state),
            keras_adafactor.OptimizerMonitor(),
            samples,
            callbacks.RecordHistory(state),
            callbacks.SaveCheckpoint(state, save),
            first
            and callbacks.WriteTensorBoard(
                self.run_dir / "tensorboard" / self.corpus.kind,
                state,
                samples,
                config.sample_sentences,
            ),
            first and progress(state, config.steps),
            callbacks.StopEarly(state, config.patience),
        ]
        return [hook for hook in hooks if hook]

    def finish(self):
        """Evaluates final and averaged weights; writes what is to be read."""
        config = self.config
        candidates = self._candidates()
        translations, validation_bleu = {}, {}
        validation = read_pairs(
            self.corpus, "validation", config.bleu_sentences
        )
        for name, steps in candidates.items():
            self.checkpoints.load_weights(self.model, steps)
            validation_bleu[name] = (
                translate_pairs(self.translator, validation).score().bleu
            )
            notice(f"Translating the test sentences, {name} weights ...")
            translations[name] = evaluate_splits(
                self.translator, self.corpus, sentences=config.test_sentences
            )
            if validation_bleu[name] >= max(validation_bleu.values()):
                chosen = name
                self._save_model()
        self.checkpoints.load_weights(self.model, candidates["final"])
        metrics = self._metrics(translations, validation_bleu, chosen)
        if self.devices.process:
            return metrics
        write_atomically(
            self.run_dir / "metrics.json", json.dumps(metrics, indent=2) + "\n"
        )
        report.plot_history(
            self.state.history,
            f"{self.corpus.name}: {config.preset}, {config.optimizer}",
            self.run_dir / "loss.png",
        )
        split, found = next(iter(translations[chosen].items()))
        print(f"\nTranslations of {split}, {chosen} weights:\n")
        print(report.format_samples(found.samples(config.sample_sentences)))
        print(f"\n{report.format_report(metrics)}", flush=True)
        return metrics

    def _candidates(self):
        """Returns the weights to compare: name to steps to average."""
        steps = self.checkpoints.steps()
        candidates = {"final": steps[-1:]}
        averaged = steps[-self.config.average_checkpoints :]
        if self.config.average_checkpoints > 1 and len(averaged) > 1:
            candidates[f"avg{len(averaged)}"] = averaged
        if self.config.patience:
            best = self.state.history[self.state.best_interval()]["step"]
            if best in steps[:-1]:
                candidates["best"] = [best]
        return candidates

    def _save_model(self):
        values = gathered(self.model.variables)
        if self.devices.process:
            return
        path = self.run_dir / "model.keras"
        unfinished = path.with_name(".unfinished-model.keras")
        with undistributed():
            # Another model: of this one, a process may hold only a part.
            model = build_run_model(self.config, self.tokenizer)
            for variable, value in zip(model.variables, values, strict=True):
                variable.assign(value)
            model.save(unfinished)
        unfinished.replace(path)

    def _metrics(self, translations, validation_bleu, chosen):
        trainable = self.model.trainable_variables
        history = self.state.history
        return {
            "data": self.corpus.name,
            "data_fingerprint": self.corpus.fingerprint,
            "config": dataclasses.asdict(self.config),
            "optimizer": describe_optimizer(self.config),
            "devices": self.devices.description,
            "commit": report.commit(),
            "versions": report.versions(),
            "steps": self.state.step,
            "training_seconds": sum(row["seconds"] for row in history),
            "process_seconds": time.monotonic() - STARTED,
            "loss": history[-1]["loss"],
            "val_loss": history[-1]["val_loss"],
            "parameters": sum(math.prod(v.shape) for v in trainable),
            "optimizer_state_bytes": report.state_bytes(
                self.optimizer.variables
            ),
            "adam_state_bytes": report.adam_state_bytes(trainable),
            "keras_adafactor_state_bytes": report.keras_adafactor_state_bytes(
                trainable
            ),
            "scores": {
                name: score_splits(found)
                for name, found in translations.items()
            },
            "validation_bleu": validation_bleu,
            "saved_weights": chosen,
        }


def _round_up(number, multiple_of):
    return -(-number // multiple_of) * multiple_of


def check_devices(config, devices):
    """Raises `UserError` for what Keras cannot do on several devices."""
    unable = []
    if config.jit_compile == "on" and not devices.takes_jit_compile:
        # TPUStrategy compiles without being asked.
        unable.append("--jit_compile on")
    if (
        devices.on_tpu
        and config.batching == "bucket"
        and len(config.bucket_lengths) > 1
    ):
        lengths = ",".join(map(str, config.bucket_lengths))
        raise UserError(
            f"{devices.description} needs batches of one static shape: "
            "--batching pack, or one --bucket_lengths. Received: --batching "
            f"bucket --bucket_lengths {lengths}"
        )
    if devices.mirrored and config.steps_per_execution > 1:
        unable.append(f"--steps_per_execution {config.steps_per_execution}")
    if (
        devices.mirrored
        and config.gradient_accumulation_steps > 1
        and not accumulates_on_replicas(config)
    ):
        unable.append(
            "--gradient_accumulation_steps "
            f"{config.gradient_accumulation_steps} with --optimizer "
            f"{config.optimizer}"
        )
    if unable:
        raise UserError(
            f"{devices.description} cannot do {', '.join(unable)}. Leave it "
            "out, or use --strategy default."
        )


def check_vocabulary(config, tokenizer):
    """Raises `UserError` if the vocabulary cannot be split as asked."""
    if tokenizer.vocab_size % config.model_parallel:
        raise UserError(
            "--model_parallel must divide the vocabulary, which fills "
            f"{tokenizer.vocab_size:,} rows. Received: {config.model_parallel}"
        )
