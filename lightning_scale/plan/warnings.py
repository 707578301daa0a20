"""What a plan shows that its user may not have meant, in plain words."""

from __future__ import annotations

from lightning_scale.plan.steps import Schedule

SQRT_SHOWN_TO = 32_768
"""The largest batch that You et al. 2019 (arXiv 1904.00962) show the square-root rule for, BERT and ImageNet."""


def of_schedule(schedule: Schedule) -> list[str]:
    """Sentences on a run's warmups, batches and ranks; the training command's own come last."""
    rules, totals = schedule.rules, schedule.totals
    sizes = {step.batch_size for step in schedule.steps}
    largest = max(sizes)
    said = []
    for warmup in rules.warmups:
        whole = totals.steps if warmup.whole is None else warmup.whole
        if warmup.steps > whole:
            what = "the run" if warmup.stage is None else f"stage {warmup.stage}"
            share = whole / warmup.steps
            said.append(
                f"The warmup takes {warmup.steps:,.6g} steps and {what} has {whole:,}: the rate never reaches its peak, only"
                f" {share:.0%} of it. Shorten the warmup, or train longer."
            )
    if rules.rate_follows in ("sqrt", "linear_then_sqrt") and largest > SQRT_SHOWN_TO:
        said.append(
            f"The batch grows to {largest:,} samples, and the square-root rule for the rate was shown to hold up to 32K (You"
            " et al. 2019, BERT and ImageNet): beyond it, tune the rate."
        )
    base = rules.legw_base_batch_size
    if base is not None and rules.rate_follows != "none":
        # An epoch's end cuts batches; those that are asked for are what the rule was meant for.
        asked = [a.batch_size for a, b in zip(schedule.steps, schedule.steps[1:], strict=False) if a.epoch == b.epoch]
        below = [size for size in asked or sizes if size < base]
        if below:
            said.append(
                f"LEGW is tuned at a batch of {base:,}, and {len(below):,} steps have fewer samples, {min(below):,} at the"
                " least: the rule is there to go up from the batch that was tuned, not down. Tune at the smallest batch."
            )
    if rules.last_size is not None and rules.last_size[1] > totals.samples - schedule.steps[-1].batch_size:
        size, samples = rules.last_size
        said.append(
            f"The batch reaches {size:,} after {samples:,} samples, and training ends after {totals.samples:,}, at a batch of"
            f" {schedule.steps[-1].batch_size:,}: shorten the ramp, or train longer."
        )
    if rules.samples_per_epoch is not None and rules.samples_per_epoch < rules.world_size:
        said.append(
            f"There are {rules.world_size:,} ranks and {rules.samples_per_epoch:,} samples in an epoch: some ranks repeat what"
            " others train on. Use fewer ranks, or more data."
        )
    return [*said, *rules.notes]
