"""Seg-diffusion's fine-tuning from one end to the other: checks, steps, states, the model's folder.

The same call begins a run, takes it up and finishes it: what the work folder holds decides.
"""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image

from diffuseg.backbones.sd import StableDiffusion
from diffuseg.errors import InputError
from diffuseg.files import atomic_path
from diffuseg.train.folder import check_output
from diffuseg.train.log import TrainLog
from diffuseg.train.mini import flush_denormals
from diffuseg.train.processes import accelerated
from diffuseg.train.segdiffusion.exporting import Trained, export_adapter, export_whole
from diffuseg.train.segdiffusion.lora import updates_at
from diffuseg.train.segdiffusion.mixing import Merged, Mixture, as_mixture, merge_sets
from diffuseg.train.segdiffusion.pictures import LabelledPictures
from diffuseg.train.segdiffusion.preparing import Run, check_model, describe_run, prepare_run
from diffuseg.train.segdiffusion.recipe import SegRecipe
from diffuseg.train.segdiffusion.relations import read_relations
from diffuseg.train.segdiffusion.running import (
    Ahead,
    Meter,
    Running,
    count_parts,
    peak_gigabytes,
    silent,
    time_limit,
)
from diffuseg.train.segdiffusion.sources import prepare_checks
from diffuseg.train.segdiffusion.starting import find_start
from diffuseg.train.segdiffusion.state import (
    BEST,
    LATEST,
    RunFacts,
    check_same_run,
    load_average,
    load_state,
    read_facts,
    save_state,
)
from diffuseg.train.segdiffusion.update import Update, Updater
from diffuseg.train.segdiffusion.validation import Checks, validate_all

PATIENCE = 10
"""Updates in a row that may be no number before a training ends."""

log = logging.getLogger(__name__)


def fine_tune(
    model: StableDiffusion,
    pictures: LabelledPictures | Mixture,
    out: Path,
    work: Path,
    recipe: SegRecipe,
    *,
    validation: LabelledPictures | Sequence[LabelledPictures] | None = None,
    start: Path | None = None,
    running: Running | None = None,
    meter: Meter = silent,
) -> RunFacts:
    """Fine-tune a text-to-image model to denoise masks, or go on with it, and write it.

    Args:
        model: Its U-Net is changed in place.
        pictures: What is learned from: a data set, or several.
        out: The folder to write, replaced when the training is done and the new one complete.
        work: Where the run is kept: states, the log (log.jsonl, tensorboard/), panels.
        recipe: The numbers.
        validation: Pictures of the same classes, all of which are looked at now and then; of a
            mixture such of every set.
        start: Begin from the weights of another run's work folder, or of a model it wrote: a
            second stage.
        running: What changes no number.
        meter: Opens progress bars.

    Returns:
        What is known of the run. It is done when `step` is the recipe's; else time was up.

    Raises:
        InputError: Something about the data, the model or the folders is wrong, which is noticed
            before the first step; or ten updates in a row were no numbers.
        MissingExtra: peft is not installed and low-rank updates are to learn.

    Example:
        >>> facts = fine_tune(load("mini"), open_dataset("scenes", split="train", limit=600),
        ...                   Path("mini-masks"), Path("work"), SegRecipe())  # doctest: +SKIP
    """
    running = running or Running()
    check_output(out)
    begun = find_start(start, recipe) if start is not None else None
    merged = merge_sets(as_mixture(pictures), read_relations(recipe.related))
    facts = describe_run(model, merged, recipe, begun)
    check_model(model, recipe, facts)
    state = work / LATEST
    if state.is_file():
        check_same_run(read_facts(state), facts, state)
    with accelerated(cpu=running.cpu) as accelerator:
        # The recipe says how precise the arithmetic is, not the launcher.
        accelerator.native_amp = False
        parts, each = count_parts(recipe.images, running.per_device, accelerator.num_processes)
        facts = replace(facts, parts=(accelerator.num_processes, parts, each))
        run = prepare_run(model, merged, work, recipe, accelerator, begun, running, facts, meter)
        checks = prepare_checks(merged, validation, recipe, running)
        with flush_denormals():
            facts = _learn(run, facts, checks, running, work, meter)
        if facts.step == recipe.steps and accelerator.is_main_process:
            _export(run, facts, running, work, out, merged)
        accelerator.wait_for_everyone()
    return facts


def _learn(
    run: Run,
    facts: RunFacts,
    checks: tuple[Checks, ...],
    running: Running,
    work: Path,
    meter: Meter,
) -> RunFacts:
    """Do all updates that are left."""
    updater, accelerator, steps = run.updater, run.accelerator, run.updater.recipe.steps
    state, parts = work / LATEST, facts.parts
    if state.is_file():
        facts = load_state(state, updater.learned, updater.average, updater.optimizer)
        if facts.parts != parts:
            log.warning("%s was drawn for %s (processes, parts, pictures), goes on with %s",
                        state, facts.parts, parts)  # fmt: skip
        facts = replace(facts, parts=parts)
    main = accelerator.is_main_process
    journal = TrainLog(work / "log.jsonl", every=1, digits=None)
    if main:
        journal.rewind(facts.step)
    is_up, began, before = time_limit(accelerator, running.minutes), time.monotonic(), facts.seconds
    with ThreadPoolExecutor(1) as pool, meter("learning") as told:
        ahead = Ahead(
            run.drawn.source, pool, images=parts[2], rank=accelerator.process_index, parts=parts[1]
        )
        while facts.step < steps:
            step, at = facts.step, time.monotonic()
            found = updater(step, lambda part, step=step: ahead.draw(step, part))
            now = time.monotonic()
            facts = _counted(facts, found, seconds=before + now - began)
            if main:
                rate = updater.recipe.images / (now - at)
                _write(journal, facts, found, rate, peak_gigabytes(accelerator.device))
            _check_numbers(facts, found, state)
            last = facts.step == steps
            if main and checks and (last or facts.step % running.validate_every == 0):
                facts = _validate(run, facts, checks, journal, work)
            up = is_up()
            if main:
                if last or up or facts.step % running.save_every == 0:
                    _save(updater, facts, state)
                if facts.step % running.keep_every == 0:
                    _save(updater, facts, work / f"step-{facts.step:07d}.safetensors")
            told(facts.step, steps, f"loss {found.loss:.4f}")
            if up:
                log.info("time is up at step %d of %d; the state is in %s", facts.step, steps, work)
                break
    return facts


def _counted(facts: RunFacts, found: Update, *, seconds: float) -> RunFacts:
    return replace(
        facts,
        step=facts.step + 1,
        skipped=facts.skipped + (not found.done),
        in_a_row=0 if found.done else facts.in_a_row + 1,
        empty=facts.empty + found.empty,
        seconds=seconds,
    )


def _write(
    journal: TrainLog, facts: RunFacts, found: Update, rate: float, gigabytes: float
) -> None:
    counts = {"empty": float(facts.empty), "skipped": float(facts.skipped)}
    speed = {"images_per_second": rate, "gigabytes": gigabytes}
    journal.write("train", facts.step, **{**found.values, **counts, **speed})


def _check_numbers(facts: RunFacts, found: Update, state: Path) -> None:
    if not found.done:
        log.warning("step %d left out: loss %g, gradient %g", facts.step, found.loss, found.norm)
    if facts.in_a_row >= PATIENCE:
        good = f"{state} (step {read_facts(state).step})" if state.is_file() else "none yet"
        raise InputError(
            "loss and gradient must be numbers",
            got=f"none in the {PATIENCE} updates up to step {facts.step}; the last good state: "
            f"{good}",
            remedy="set precision=fp32 or a lower learning_rate, in another work folder, with "
            "--start for the weights of this one",
        )


def _save(updater: Updater, facts: RunFacts, path: Path) -> None:
    save_state(path, updater.learned, updater.average, updater.optimizer, facts)


def _validate(
    run: Run, facts: RunFacts, checks: tuple[Checks, ...], journal: TrainLog, work: Path
) -> RunFacts:
    with run.updater.averaged(), updates_at(run.inner, run.updater.recipe.kept):
        found = validate_all(run.updater.learner, run.inner, checks)
    journal.write("validation", facts.step, **found.values)
    journal.show("validation", facts.step, found.panel)
    with atomic_path(work / "panels" / f"step-{facts.step:07d}.png") as temporary:
        PIL.Image.fromarray(np.ascontiguousarray(found.panel)).save(temporary)
    facts = replace(facts, validation=found.values)
    score = found.values["miou"]
    if score is not None and (facts.best is None or score > facts.best):
        facts = replace(facts, best=score, best_step=facts.step)
        _save(run.updater, facts, work / BEST)
    return facts


def _export(
    run: Run,
    facts: RunFacts,
    running: Running,
    work: Path,
    out: Path,
    merged: Merged,
) -> None:
    updater, recipe = run.updater, run.updater.recipe
    told = "; ".join(
        f"{one.name}, {len(one)} pictures of {len(one.classes)} classes"
        for one in merged.mixture.sets
    )
    with updater.averaged():
        if running.export == "best" and (work / BEST).is_file():
            load_average(work / BEST, updater.learned)
            facts = read_facts(work / BEST)
        trained = Trained(
            model=run.model,
            network=run.inner,
            recipe=recipe,
            facts=facts,
            pictures=told,
            preset={"learned": list(run.drawn.learned), **running.preset},
        )
        # An adapter of what denoises masks already would have no base to be loaded on.
        whole = recipe.weights == "full" or running.merge or run.wide
        (export_whole if whole else export_adapter)(trained, out)
    log.info("wrote %s", out)
