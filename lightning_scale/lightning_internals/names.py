"""The list of all names of Lightning's, and jsonargparse's, that may change without notice and that this package relies on.

Private ones, public ones that no documentation promises, and every method that a class of this package overrides: were such
a method renamed, the override would be dead without a word. A name that is not in this list is used nowhere.
"""

from __future__ import annotations

from typing import Any

from lightning_scale.lightning_internals.checks import Name, check_classes, check_instance

TRAINER = "lightning.pytorch:Trainer"
MODULE = "lightning.pytorch:LightningModule"
DATA_MODULE = "lightning.pytorch:LightningDataModule"
CALLBACK = "lightning.pytorch:Callback"
PROGRESS_BAR = "lightning.pytorch.callbacks:TQDMProgressBar"

FIT_LOOP = "lightning.pytorch.loops.fit_loop:_FitLoop"
EPOCH_LOOP = "lightning.pytorch.loops.training_epoch_loop:_TrainingEpochLoop"
VALIDATION_LOOP = "lightning.pytorch.loops.evaluation_loop:_EvaluationLoop"
PREDICTION_LOOP = "lightning.pytorch.loops.prediction_loop:_PredictionLoop"
INIT = "lightning.fabric.utilities.init"
CLOSURE_RESULT = "lightning.pytorch.loops.optimization.automatic:ClosureResult"
OPTIMIZATION = "lightning.pytorch.loops.optimization.automatic:_AutomaticOptimization"
PROGRESS = "lightning.pytorch.loops.progress:_Progress"
BATCH_PROGRESS = "lightning.pytorch.loops.progress:_BatchProgress"
TRACKER = "lightning.pytorch.loops.progress:_ProcessedTracker"
RESULTS = "lightning.pytorch.trainer.connectors.logger_connector.result:_ResultCollection"
FETCHER = "lightning.pytorch.loops.fetchers:_DataFetcher"
LOADERS = "lightning.pytorch.utilities.combined_loader:CombinedLoader"

ACCELERATOR_CONNECTOR = "lightning.pytorch.trainer.connectors.accelerator_connector:_AcceleratorConnector"
DATA_CONNECTOR = "lightning.pytorch.trainer.connectors.data_connector:_DataConnector"
CHECKPOINT_CONNECTOR = "lightning.pytorch.trainer.connectors.checkpoint_connector:_CheckpointConnector"
SIGNAL_CONNECTOR = "lightning.pytorch.trainer.connectors.signal_connector:_SignalConnector"
LAUNCHERS = "lightning.pytorch.strategies.launchers"
SCRIPT_LAUNCHER = "lightning.pytorch.strategies.launchers.subprocess_script:_SubprocessScriptLauncher"
FORKING_LAUNCHER = "lightning.pytorch.strategies.launchers.multiprocessing:_MultiProcessingLauncher"

PRECISION = "lightning.pytorch.plugins:Precision"
BATCH_FINDER = "lightning.pytorch.callbacks:BatchSizeFinder"
RATE_FINDER = "lightning.pytorch.callbacks:LearningRateFinder"
RATE_MONITOR = "lightning.pytorch.callbacks:LearningRateMonitor"
STRATEGY = "lightning.pytorch.strategies:Strategy"
PARALLEL = "lightning.pytorch.strategies:ParallelStrategy"
MODEL_PARALLEL = "lightning.pytorch.strategies:ModelParallelStrategy"
DEEPSPEED = "lightning.pytorch.strategies:DeepSpeedStrategy"
CHECKPOINT_FILES = "lightning.pytorch.plugins.io:TorchCheckpointIO"
FILES = "lightning.fabric.utilities.cloud_io"

COMMAND = "lightning.pytorch.cli:LightningCLI"
COMMAND_PARSER = "lightning.pytorch.cli:LightningArgumentParser"
PARSER = "jsonargparse:ArgumentParser"
SUBCOMMANDS = "jsonargparse:ActionSubCommands"

NAMES: tuple[Name, ...] = (
    # -- the Trainer ---------------------------------------------------------------------------------------------------
    Name(TRAINER, "fit_loop", "read", "the training loop", on_instance=True),
    Name(TRAINER, "val_check_batch", "set", "validation follows an epoch whose length changes", on_instance=True),
    Name(TRAINER, "_data_connector", "read", "who gives loaders a distributed sampler", on_instance=True),
    Name(TRAINER, "_checkpoint_connector", "read", "who loads checkpoints", on_instance=True),
    Name(TRAINER, "_signal_connector", "read", "who registers signal handlers", on_instance=True),
    Name(TRAINER, "save_checkpoint", "replaced", "save with unscaled rates and a whole number of steps"),
    Name(TRAINER, "estimated_stepping_batches", "overridden", "count steps of batches whose size changes"),
    Name(TRAINER, "accumulate_grad_batches", "overridden", "say of how many micro-batches a step is", on_instance=True),
    Name(ACCELERATOR_CONNECTOR, "is_distributed", "overridden", "asks a plan's strategy, which has it, too"),
    Name(DATA_CONNECTOR, "_requires_distributed_sampler", "replaced", "leave a ResumableBatchSampler as it is"),
    Name(CHECKPOINT_CONNECTOR, "resume_start", "replaced", "choose the newest whole checkpoint"),
    Name(SIGNAL_CONNECTOR, "register_signal_handlers", "replaced", "register handlers after Lightning's"),
    Name(LAUNCHERS, "_SubprocessScriptLauncher", "read", "whether this process has launched the ranks"),
    Name(LAUNCHERS, "_MultiProcessingLauncher", "read", "whether this process has launched the ranks"),
    Name(SCRIPT_LAUNCHER, "procs", "read", "end the ranks that were launched from here", on_instance=True),
    Name(FORKING_LAUNCHER, "procs", "read", "end the ranks that were launched from here", on_instance=True),
    # -- the training loop ---------------------------------------------------------------------------------------------
    Name(FIT_LOOP, "run", "replaced", "a plan counts steps instead of taking them"),
    Name(FIT_LOOP, "setup_data", "replaced", "stages begin, and resumed runs go on, before loaders are made"),
    Name(FIT_LOOP, "restarting", "set", "a resumed epoch is not over"),
    Name(FIT_LOOP, "_can_stop_early", "read", "whether training ends with this micro-batch"),
    Name(FIT_LOOP, "epoch_loop", "read", "the loop over an epoch's micro-batches", on_instance=True),
    Name(FIT_LOOP, "epoch_progress", "set", "the count of epochs", on_instance=True),
    Name(FIT_LOOP, "max_batches", "set", "micro-batches of an epoch", on_instance=True),
    Name(FIT_LOOP, "max_epochs", "set", "stages end training, not epochs", on_instance=True),
    Name(FIT_LOOP, "_restarting", "set", "a resumed epoch goes on as any other", on_instance=True),
    Name(FIT_LOOP, "_loaded_from_state_dict", "set", "whether counts are a checkpoint's", on_instance=True),
    Name(FIT_LOOP, "_combined_loader", "set", "the training loaders; none: they are made anew", on_instance=True),
    Name(FIT_LOOP, "_data_fetcher", "set", "ends the loaders' worker processes", on_instance=True),
    Name(EPOCH_LOOP, "_results", "read", "what has been logged", on_instance=True),
    Name(RESULTS, "update_metrics", "called", "log a number again in a fifth of the time"),
    Name(EPOCH_LOOP, "advance", "replaced", "a micro-batch draws from random streams of its own"),
    Name(EPOCH_LOOP, "on_run_start", "replaced", "an epoch's iterators draw from the training stream"),
    Name(EPOCH_LOOP, "update_lr_schedulers", "replaced", "schedulers see unscaled rates and count steps"),
    Name(EPOCH_LOOP, "global_step", "read", "the count of steps"),
    Name(EPOCH_LOOP, "_should_accumulate", "replaced", "the window decides when there is a step"),
    Name(EPOCH_LOOP, "_should_check_val_fx", "replaced", "validate by steps, samples or tokens"),
    Name(EPOCH_LOOP, "_num_ready_batches_reached", "called", "whether this micro-batch is the epoch's last"),
    Name(EPOCH_LOOP, "batch_progress", "set", "the count of micro-batches", on_instance=True),
    Name(EPOCH_LOOP, "max_steps", "set", "stages end training", on_instance=True),
    Name(EPOCH_LOOP, "val_loop", "read", "the validation loop", on_instance=True),
    Name(EPOCH_LOOP, "automatic_optimization", "read", "where steps are counted", on_instance=True),
    Name(EPOCH_LOOP, "_batches_that_stepped", "set", "the loggers' step after a resume", on_instance=True),
    Name(VALIDATION_LOOP, "setup_data", "replaced", "validation draws from the outside random stream"),
    Name(VALIDATION_LOOP, "reset", "replaced", "validation draws from the outside random stream"),
    Name(VALIDATION_LOOP, "_combined_loader", "set", "a stage's loaders are made anew", on_instance=True),
    Name(VALIDATION_LOOP, "_data_fetcher", "set", "ends the loaders' worker processes", on_instance=True),
    Name(OPTIMIZATION, "_make_zero_grad_fn", "replaced", "gradients of a window are kept"),
    Name(OPTIMIZATION, "_on_before_zero_grad", "called", "once for each window"),
    Name(OPTIMIZATION, "_optimizer_zero_grad", "called", "once for each window"),
    Name(OPTIMIZATION, "output_result_cls", "replaced", "the window weighs losses, not Lightning"),
    Name(CLOSURE_RESULT, "from_training_step_output", "overridden", "the window weighs losses, not Lightning"),
    Name(OPTIMIZATION, "optim_progress", "read", "a plan counts steps", on_instance=True),
    Name("lightning.pytorch.loops.progress:_OptimizationProgress", "optimizer", "read", "a plan counts steps"),
    Name("lightning.pytorch.loops.progress:_OptimizerProgress", "step", "read", "a plan counts steps"),
    Name(PROGRESS, "total", "set", "counts over all epochs"),
    Name(PROGRESS, "current", "set", "counts of the present epoch"),
    Name(PROGRESS, "increment_processed", "called", "a plan counts epochs"),
    Name(PROGRESS, "increment_completed", "called", "a plan counts steps"),
    Name(BATCH_PROGRESS, "is_last_batch", "set", "a stage's end closes the epoch"),
    Name(BATCH_PROGRESS, "reset_on_run", "called", "a resumed run begins a new epoch"),
    Name(TRACKER, "ready", "set", "counts are rewound to a window's start"),
    Name(TRACKER, "started", "set", "counts are rewound to a window's start"),
    Name(TRACKER, "processed", "set", "counts are rewound to a window's start"),
    Name(TRACKER, "completed", "set", "counts are rewound to a window's start"),
    Name(FETCHER, "teardown", "called", "ends the loaders' worker processes"),
    Name(LOADERS, "flattened", "read", "the loaders, one by one"),
    Name(LOADERS, "limits", "set", "an epoch's length changes with its batches"),
    # -- modules, data and callbacks -----------------------------------------------------------------------------------
    Name(MODULE, "configure_model", "replaced", "Lightning insists on one under FSDP2"),
    Name(MODULE, "configure_optimizers", "replaced", "the command builds what the configuration names"),
    Name(DATA_MODULE, "train_dataloader", "overridden", "a plan's data of a known size"),
    *(
        Name(CALLBACK, hook, "overridden", "callbacks of this package are called there")
        for hook in (
            "setup",
            "teardown",
            "state_dict",
            "load_state_dict",
            "on_fit_start",
            "on_fit_end",
            "on_sanity_check_start",
            "on_train_start",
            "on_train_end",
            "on_train_epoch_start",
            "on_train_epoch_end",
            "on_train_batch_start",
            "on_train_batch_end",
            "on_before_backward",
            "on_after_backward",
            "on_before_optimizer_step",
            "on_validation_batch_start",
            "on_validation_batch_end",
            "on_validation_end",
            "on_save_checkpoint",
            "on_exception",
        )
    ),
    Name(PROGRESS_BAR, "on_train_start", "overridden", "one bar for all epochs"),
    Name(PROGRESS_BAR, "on_train_epoch_start", "overridden", "one bar for all epochs"),
    Name(PROGRESS_BAR, "on_train_batch_end", "overridden", "the bar counts optimizer steps"),
    Name(PROGRESS_BAR, "on_train_epoch_end", "overridden", "the bar counts optimizer steps"),
    Name(PROGRESS_BAR, "get_metrics", "overridden", "short texts beside the bar"),
    Name(PROGRESS_BAR, "init_train_tqdm", "called", "the bar"),
    # -- strategies ----------------------------------------------------------------------------------------------------
    Name(
        STRATEGY,
        "training_step",
        "replaced",
        "see what it returned, before the backward pass; rates are scaled from there on",
    ),
    Name(PRECISION, "optimizer_step", "replaced", "rates are scaled up to there"),
    Name(
        "lightning.pytorch.callbacks:LearningRateFinder",
        "_early_exit",
        "read",
        "whether a Tuner has put it there",
        on_instance=True,
    ),
    Name(
        "lightning.pytorch.callbacks:BatchSizeFinder",
        "_early_exit",
        "read",
        "whether a Tuner has put it there",
        on_instance=True,
    ),
    Name(RATE_MONITOR, "on_train_epoch_start", "replaced", "it looks at scaled rates"),
    Name(RATE_MONITOR, "on_train_batch_start", "replaced", "it looks at scaled rates"),
    Name(STRATEGY, "save_checkpoint", "replaced", "write a manifest when all ranks have saved"),
    Name(STRATEGY, "remove_checkpoint", "replaced", "remove the manifest, too"),
    Name(MODEL_PARALLEL, "setup_environment", "overridden", "the mesh holds all ranks"),
    Name(MODEL_PARALLEL, "setup", "overridden", "shard a module that does not do it itself"),
    Name(MODEL_PARALLEL, "model_to_device", "overridden", "offloaded parameters stay on the host"),
    Name(MODEL_PARALLEL, "load_checkpoint", "overridden", "run nothing of a checkpoint; files of any strategy"),
    Name(STRATEGY, "on_exception", "overridden", "say what torch's error about sharded parameters means"),
    Name(MODEL_PARALLEL, "optimizer_state", "overridden", "state of frozen parameters, and none that there is not"),
    Name(MODEL_PARALLEL, "block_backward_sync", "overridden", "copies of parameters are synchronized once a step"),
    Name(PARALLEL, "_layer_sync", "read", "whether BatchNorm is to be synchronized", on_instance=True),
    Name(INIT, "_materialize_distributed_module", "called", "parameters on the meta device get memory and values"),
    Name(VALIDATION_LOOP, "inference_mode", "set", "sharded parameters are gathered in place", on_instance=True),
    Name(PREDICTION_LOOP, "inference_mode", "set", "sharded parameters are gathered in place", on_instance=True),
    Name(MODEL_PARALLEL, "num_processes", "read", "the number of ranks, before there is a process group"),
    Name(MODEL_PARALLEL, "device_mesh", "read", "what parameters are sharded over"),
    Name(MODEL_PARALLEL, "_get_process_group_backend", "overridden", "gloo for what is offloaded to the host"),
    Name(MODEL_PARALLEL, "_process_group_backend", "read", "what the user asked for", on_instance=True),
    Name(MODEL_PARALLEL, "_data_parallel_size", "set", "the mesh holds all ranks", on_instance=True),
    Name(DEEPSPEED, "setup_environment", "overridden", "run on CPUs, too"),
    Name(DEEPSPEED, "setup", "overridden", "BatchNorm's statistics over all ranks"),
    Name(DEEPSPEED, "_layer_sync", "read", "whether that was asked for", on_instance=True),
    Name(DEEPSPEED, "setup_distributed", "overridden", "run on CPUs, too"),
    Name(DEEPSPEED, "set_world_ranks", "called", "run on CPUs, too"),
    Name(DEEPSPEED, "root_device", "overridden", "run on CPUs, too"),
    Name(DEEPSPEED, "handles_gradient_accumulation", "overridden", "the window says when there is a step"),
    Name(DEEPSPEED, "block_backward_sync", "overridden", "DeepSpeed synchronizes what its stage has to"),
    Name(DEEPSPEED, "training_step", "overridden", "refuse a micro-batch without a loss"),
    Name(DEEPSPEED, "save_checkpoint", "overridden", "single files of whole weights"),
    Name(DEEPSPEED, "lightning_module_state_dict", "overridden", "hooks find what the file will hold"),
    Name(DEEPSPEED, "optimizer_state", "overridden", "hooks find what the file will hold"),
    Name(DEEPSPEED, "load_checkpoint", "overridden", "run nothing of a checkpoint; files of any strategy"),
    Name(DEEPSPEED, "model_sharded_context", "overridden", "build a module whole, unless asked otherwise"),
    Name(DEEPSPEED, "_format_batch_size_and_grad_accum_config", "overridden", "the window's own accumulation and clip"),
    Name(DEEPSPEED, "_setup_model_and_optimizer", "overridden", "tell the optimizer where its layers lie"),
    Name(DEEPSPEED, "_init_deepspeed_distributed", "called", "run on CPUs, too"),
    Name(DEEPSPEED, "_init_config_if_needed", "called", "a module is built before DeepSpeed is started"),
    Name(DEEPSPEED, "zero_stage_3", "read", "which folders can be loaded"),
    Name(DEEPSPEED, "config", "set", "DeepSpeed's configuration", on_instance=True),
    Name(DEEPSPEED, "load_full_weights", "read", "which checkpoints are expected", on_instance=True),
    Name(DEEPSPEED, "exclude_frozen_parameters", "read", "what is left out of a file", on_instance=True),
    *(
        Name(PARALLEL, name, "overridden", "a plan's strategy stands for ranks that are not here")
        for name in (
            "root_device",
            "world_size",
            "distributed_sampler_kwargs",
            "model_to_device",
            "tensor_init_context",
            "process_dataloader",
            "block_backward_sync",
            "reduce_boolean_decision",
            "reduce",
            "all_gather",
            "barrier",
            "broadcast",
            "teardown",
        )
    ),
    # -- checkpoint files ----------------------------------------------------------------------------------------------
    Name(CHECKPOINT_FILES, "save_checkpoint", "overridden", "files that appear whole or not at all"),
    Name(CHECKPOINT_FILES, "load_checkpoint", "overridden", "run nothing of a file"),
    Name(FILES, "_load", "called", "load from wherever Lightning can"),
    # -- the command ---------------------------------------------------------------------------------------------------
    Name(COMMAND, "_add_arguments", "overridden", "the option --lr_scheduler_interval"),
    Name(COMMAND, "_add_configure_optimizers_method_to_model", "overridden", "build the optimizer later"),
    Name(COMMAND, "configure_optimizers", "read", "whether a subclass makes of optimizer and scheduler what it wants"),
    Name(COMMAND, "_parser", "called", "the options of the subcommand"),
    Name(COMMAND, "_prepare_subcommand_parser", "overridden", "the option --resume"),
    Name(COMMAND, "_add_subcommands", "overridden", "the subcommand plan"),
    Name(COMMAND, "_add_instantiators", "overridden", "a plan's module is built without memory"),
    Name(COMMAND, "_run_subcommand", "overridden", "the subcommand plan"),
    Name(COMMAND, "_parse_ckpt_path", "overridden", "a checkpoint does not choose the module's class or arguments"),
    Name(COMMAND, "parse_arguments", "overridden", "find the fragments that are shipped"),
    Name(COMMAND, "instantiate_classes", "overridden", "one sentence for an error"),
    Name(COMMAND, "instantiate_trainer", "overridden", "a plan has a Trainer of its own"),
    Name(COMMAND, "_get", "called", "a value of the configuration, of whichever subcommand"),
    Name(COMMAND, "_subcommand_parsers", "set", "the subcommand plan", on_instance=True),
    Name(COMMAND_PARSER, "_optimizers", "read", "the optimizers that have options", on_instance=True),
    Name(COMMAND_PARSER, "_lr_schedulers", "read", "the schedulers that have options", on_instance=True),
    Name(PARSER, "error", "overridden", "one sentence, not a page of usage"),
    Name(PARSER, "add_instantiator", "called", "a plan's module is built without memory"),
    Name(PARSER, "_actions", "read", "options to suggest near a misspelt one", on_instance=True),
    Name(PARSER, "_subcommands_action", "read", "the subcommand plan", on_instance=True),
    Name(SUBCOMMANDS, "add_subcommand", "called", "the subcommand plan", on_instance=True),
)


def check(owner: str, instance: Any) -> None:
    """Check what instances of a class in the list must have, where one is about to be used.

    Raises:
        RuntimeError: where the instance lacks a name; it names the version.
    """
    check_instance(NAMES, owner, instance)


check_classes(NAMES)
