"""What people type first, from other trainers' habits or by a slip: each is answered in one line with the fix."""

from pathlib import Path

import pytest
import yaml

from tests.commands import call
from videoscaling.training.config import load_config, to_dict

BASE = "--config configs/train/quickstart.yaml"
SWEEP = "{sweep}"
SAMPLE = "sample.py --prompt x --checkpoint"

# (what is typed, what the answer must say); {folder} holds runs/x with a checkpoint, small, a run
# without one, a cache, and a sweep's YAML.
MISTAKES = [
    # train.py
    ("train.py configs/train/base.yaml", "configs/train/base.yaml: a configuration file is given as --config configs"),
    ("train.py --config {folder}/runs", "runs: a folder; give a YAML file, such as"),
    ("train.py --config {folder}/link.yaml", "link.yaml: too many levels of symbolic links; choose another path"),
    ("train.py --config /dev/zero", "/dev/zero: not a YAML file (longer than 16 MiB)"),
    ("sample.py --prompts /dev/zero", "/dev/zero: not a text file with one prompt per line (longer"),
    ("train.py --config missing.yaml", "missing.yaml: no such configuration file"),
    ("train.py --config configs/train/quickstart.yml", "no such configuration file; did you mean 'quickstart.yaml'?"),
    ("train.py train.device=cuda", "unknown key 'train.device'; a run takes the GPU where there is one, else the CPU"),
    ("train.py --device cuda", "--device: no such option; a run takes the GPU where there is one, else the CPU"),
    ("tools/cache_latents.py --source Synthetic --out {folder}/c", "or tar; did you mean 'synthetic'?"),
    (
        "tools/plan.py --law results/mini/cells/0256cb774691/result.json --flops 1e12",
        "a run's result, not a law; tools/fit.py fits laws",
    ),
    ("train.py --cfg configs/train/base.yaml", "--cfg: no such option; did you mean '--config'"),
    ("train.py --lr 3e-4", "--lr: no such option; it is a key: write optim.lr=... (peak learning rate"),
    ("train.py --batch-size 8", "it is a key: write train.batch_tokens=... (global batch B in tokens"),
    ("train.py --learning_rate=3e-4", "it is a key: write optim.lr=..."),
    ("train.py --output-dir runs/x", "it is a key: write out=... (folder of run directories"),
    ("train.py --seed 1", "it is a key: write seed=..."),
    ("train.py --dryrun", "--dryrun: no such option; did you mean '--dry-run'"),
    ("train.py --dry", "--dry: no such option; did you mean '--dry-run'"),
    ("sample.py --prompt x --n 2", "--n: no such option; --help lists them"),
    ("train.py --zzzz", "--zzzz: no such option; --help lists them"),
    ("train.py lr=3e-4", "unknown key 'lr'; did you mean 'optim.lr'"),
    ("train.py wandb=true", "unknown key 'wandb'; did you mean 'log.to'? (where the points go"),
    ("train.py epochs=3", "did you mean 'train.tokens'? (end of the run, in tokens"),
    ("train.py batch_size=8", "did you mean 'train.batch_tokens'? (global batch B in tokens"),
    ("train.py precision=bf16", "did you mean 'train.dtype'? (compute dtype of the blocks"),
    ("train.py optim.ema_decay=0.999", "did you mean 'ema.width'"),
    ("train.py optim.lr 3e-4", "'optim.lr': not an override; write key=value"),
    ("train.py optim.lr=fast", "optim.lr='fast': must be a number"),
    ("train.py optim.lr=-1", "optim.lr=-1.0: must be a positive number"),
    ("train.py train.dtype=fp16", "train.dtype=fp16: one of auto, float32, bfloat16"),
    ("train.py seed=???", "seed=???: stands for a value that is not given; give one"),
    ("train.py name=${{oc.env:HOME}}", "is not replaced here, since configurations are kept with results; write the "),
    ("train.py name=../x", "name='../x': must be a folder's name inside out=runs"),
    ("train.py name=", "name: no value; leave the key out"),
    ("train.py model=4x128", "model: a group of keys, not a value; set one of its keys"),
    ("train.py log.prompts=[a,", "log.prompts=[a,: not YAML"),
    (
        f"train.py --dry-run --account --n-ctx 80 {BASE} model.size=2x64 model.patch=[1e18,1,1]",
        "model.patch=[1000000000000000000, 1, 1]: each must be a number from 1 to 1,024",
    ),
    ("train.py train.tokens=1e30", "train.tokens=1000000000000000000000000000000: too large"),
    ("train.py train.milestones=[1e30]", "too large; a whole number is at most 9.22e+18"),
    (f"train.py --json {BASE}", "--json: goes with --dry-run"),
    (f"train.py --gpu h100 {BASE}", "--gpu: goes with --dry-run --account"),
    (
        f"train.py --dry-run --account --n-ctx 80 {BASE} model.size=64x2 train.batch_tokens=80 train.tokens=800",
        "model size '64x2': is 64 layers of width 2; did you mean '2x64'",
    ),
    (
        f"train.py --dry-run --account --n-ctx 80 {BASE} model.size=1000000x1000000 train.batch_tokens=80 "
        "train.tokens=800",
        "at most 1e+14 and 1,024 can be built",
    ),
    (
        f"train.py --dry-run --account --n-ctx 80 {BASE} model.size=100000x64 train.batch_tokens=80 train.tokens=800",
        "at most 1e+14 and 1,024 can be built",
    ),
    # of other trainers: DiT, Latte, Open-Sora, diffusers, nanochat, lingua
    ("train.py model=DiT-XL/2", "model: a group of keys, not a value; set one of its keys, such as model.size=..."),
    ("train.py --model DiT-XL/2", "--model: no such option; it is a key: write model.size=... (a named size, LAYERSx"),
    ("train.py --nproc_per_node 8", "several GPUs under torchrun"),
    ("train.py --num-frames 17", "clips are cut and encoded by tools/cache_latents.py (--frames, --size, --fps)"),
    ("train.py image_size=256", "unknown key 'image_size'; clips are cut and encoded by tools/cache_latents.py"),
    ("train.py data_path=x", "did you mean 'data.cache'? (folder of cached latents, made by tools/cache_latents.py"),
    (
        "train.py --ckpt_path x",
        "a run continues from its newest checkpoint if it is started again with the same name=",
    ),
    ("train.py resume_from=x", "unknown key 'resume_from'; a run continues from its newest checkpoint if it is"),
    ("train.py --resume_from_checkpoint latest", "a run continues from its newest checkpoint"),
    (
        "train.py --num_workers 4",
        "training reads latents from memory maps; tools/cache_latents.py, which decodes, has",
    ),
    ("train.py --use_ema", "the weights are always averaged; ema.width says how"),
    ("train.py --global-batch-size 256", "it is a key: write train.batch_tokens=..."),
    ("train.py --gradient_accumulation_steps 4", "it is a key: write train.micro_batch=..."),
    ("train.py --device_batch_size 4", "it is a key: write train.micro_batch=..."),
    ("train.py --num_iterations 100", "it is a key: write train.tokens=... (end of the run, in tokens"),
    ("train.py --lr_warmup_steps 10", "it is a key: write optim.warmup_tokens=..."),
    ("train.py --gradient_checkpointing", "it is a key: write train.activation_checkpointing=..."),
    ("train.py --depth=12", "it is a key: write model.size=..."),
    ("train.py model.dim=512", "did you mean 'model.size'? (a named size, LAYERSxWIDTH"),
    ("train.py dump_dir=x", "did you mean 'out'? (folder of run directories)"),
    ("train.py distributed.fsdp_type=full_shard", "did you mean 'train.parallel'?"),
    ("train.py --max_grad_norm 1", "it is a key: write optim.clip=..."),
    ("train.py --run=x", "it is a key: write name=..."),
    ("sample.py --checkpoint x --prompt_path x", "did you mean '--prompts'?"),
    ("sample.py --checkpoint x --save_path x", "did you mean '--out'?"),
    ("tools/cache_latents.py --data_path x --out x", "did you mean '--source'?"),
    ("tools/cache_latents.py --source x --out x --resolution 256", "did you mean '--size'?"),
    ("tools/cache_latents.py --source x --out x --frame-interval 3", "did you mean '--stride'?"),
    # sample.py
    ("sample.py --ckpt runs/x --prompt x", "--ckpt: no such option; did you mean '--checkpoint'"),
    (f"{SAMPLE} runs/x --cfg-scale 4", "--cfg-scale: no such option; did you mean '--guidance'"),
    (f"{SAMPLE} runs/x --num_inference_steps 4", "did you mean '--steps'"),
    (f"{SAMPLE} nowhere", "nowhere: no such checkpoint or run directory"),
    (f"{SAMPLE} {{folder}}/smal", "smal: no such checkpoint or run directory; did you mean 'small'?"),
    (f"{SAMPLE} {{folder}}/runz/x", "runz/x: no such checkpoint or run directory; did you mean 'runs'?"),
    (f"{SAMPLE} {{folder}}/cache", "cache: a cache of latents, which train.py reads as data.cache; give a run dir"),
    (
        f"{SAMPLE} {{folder}}/small",
        "small: has no checkpoint yet; the first is written at step 200 or when it is stopped; no process trains it "
        "here, so repeat its train.py command",
    ),
    (
        "tools/export.py --checkpoint {folder}/small --out m",
        "small: has no checkpoint yet; the first is written at st",
    ),
    (f"{SAMPLE} runs/x --steps 50.5", "--steps '50.5': must be a whole number, such as 8"),
    (f"{SAMPLE} {{folder}}/runs", "runs: holds 1 run and is none itself; name one, such as {folder}/runs/x"),
    (
        f"{SAMPLE} {{folder}}/runs/x/checkpoints/step_0000001/ema.safetensors",
        "ema.safetensors: a file; give {folder}/runs/x/checkpoints/step_0000001, the checkpoint",
    ),
    (f"{SAMPLE} {{folder}}/model.pt", "model.pt: a file; model.pt is a pickle"),
    ("sample.py dog", "'dog': without an option; write --prompt 'dog'"),
    ("sample.py {folder}/model.pt", "without an option; write --checkpoint '{folder}/model.pt'"),
    ("sample.py --neg-prompt x", "did you mean '--negative-prompt'"),
    ("sample.py --num-frames 17", "did you mean '--frames'"),
    ("sample.py --height 32", "did you mean '--size'"),
    ("sample.py --scale 4", "did you mean '--upscale'"),
    ("sample.py --checkpoint {folder}/runs/x", "no prompt: give --prompt TEXT or --prompts FILE"),
    # tools
    ("tools/sweep.py run {folder}/missing.yaml", "no such configuration file; give a sweep's YAML"),
    ("tools/sweep.py run configs/train/base.yaml", "give a sweep's YAML, such as configs/sweep/quickstart.yaml"),
    (f"tools/sweep.py run {SWEEP} optim.lr=1e-3", "a key of training: write config.optim.lr=1e-3"),
    (f"tools/sweep.py run {SWEEP} --dryrun", "--dryrun: no such option; did you mean '--dry-run'"),
    (f"tools/sweep.py run {SWEEP} --lr 3e-4", "--lr: no such option; it is a key: write lr=..."),
    (f"tools/sweep.py run {SWEEP} --learning-rate 3e-4", "it is a key: write lr=..."),
    (f"tools/sweep.py run {SWEEP} --batch-size 8", "it is a key: write batch_tokens=..."),
    (f"tools/sweep.py run {SWEEP} --workers 2", "it is a key: write executor.workers=..."),
    (f"tools/sweep.py run {SWEEP} --partition gpu", "it is a key: write executor.slurm.partition=..."),
    (f"tools/sweep.py status {SWEEP} --precision bf16", "it is a key: write config.train.dtype=..."),
    (f"tools/sweep.py run --config {SWEEP}", "--config: no such option; give the sweep's YAML without an option"),
    (f"tools/sweep.py extend {SWEEP} --tolerence 1e-3", "did you mean '--tolerance'"),
    (f"tools/sweep.py status {SWEEP} config.optim=fast", "optim: a group of keys, not a value; set one of its keys"),
    (f"tools/sweep.py status {SWEEP} executor.slurm.qos=low", "unknown key executor.slurm.qos"),
    (f"tools/sweep.py status {SWEEP} executor.kind=lsf", "executor.kind=lsf: one of local, slurm, command"),
    (f"tools/sweep.py run {SWEEP} executor.kind=command", "executor.command=None: give a line of shell, such as"),
    (f"tools/sweep.py run {SWEEP} executor.command=bsub", "it goes with executor.kind=command"),
    (f"tools/sweep.py run {SWEEP} executor.kind=command executor.command=bsub", "lacks {{command}}, which trains"),
    (
        f"tools/sweep.py run {SWEEP} executor.kind=command executor.command={{{{cmd}}}}",
        "{{cmd}} is unknown",
    ),
    (f"tools/sweep.py run {SWEEP} executor.template=x", "did you mean 'executor.command'? (with kind command"),
    (f"tools/sweep.py run {SWEEP} executor.command", "executor.command: no value; write executor.command=..."),
    (f"tools/sweep.py run {SWEEP} command=x", "it is a key: write executor.command=..."),
    (f"tools/sweep.py run {SWEEP} executor.slurm.container=x.sif", "did you mean 'executor.slurm.python'?"),
    (f"tools/sweep.py run {SWEEP} log.to=[wandb]", "write config.log.to=[wandb]"),
    (f"tools/sweep.py run {SWEEP} --wandb", "it is a key: write config.log.to=..."),
    (f"tools/sweep.py collect {SWEEP} --license mit", "did you mean '--licence'"),
    ("tools/export.py --model runs/x --out m", "did you mean '--checkpoint'"),
    ("tools/export.py --checkpoint {folder}/runs/x --out {folder}", "exists, and is no export; name a new folder"),
    ("tools/plan.py --law configs/laws/paper.json --page p.html", "did you mean '--html'"),
    ("train.py --pretrained x", "it is a key: write train.init=... (begin with the EMA weights"),
    ("train.py log.to=wandb", "log.to='wandb': must be a list, such as ['wandb']"),
    ("train.py log.to=[tensorbord]", "one of tensorboard, wandb, trackio; did you mean 'tensorboard'?"),
    ("train.py --target-flops 1e18", "it is a key: write train.flops=..."),
    ("train.py --eval-every 100", "it is a key: write train.milestones=..."),
    ("train.py accumulation_steps=2", "did you mean 'train.micro_batch'?"),
    ("train.py clip_max_norm=1", "did you mean 'optim.clip'?"),
    ("train.py config=x.yaml", "a configuration file is given as --config FILE"),
    ("train.py load=x", "a run continues from its newest checkpoint if it is started again"),
    ("train.py --push_to_hub", "tools/export.py writes a folder with a card"),
    ("train.py --tracker_project_name x", "read environment variables such as WANDB_PROJECT"),
    ("train.py wandb_project=x", "read environment variables such as WANDB_PROJECT"),
    ("train.py log.to=[wandb] log.prompts=[x]", "their videos are in TensorBoard alone"),
    (f"tools/sweep.py run {SWEEP} --print-cmds", "did you mean '--print-commands'"),
    (f"tools/sweep.py run {SWEEP} --print-commands --dry-run", "not allowed with argument --print-commands"),
    (f"tools/sweep.py status {SWEEP} out=${{{{oc.env:HOME}}}}", "is not replaced here"),
    (f"tools/sweep.py status {SWEEP} repeats=1e9", "repeats=1000000000: must be a number from 1 to 10,000"),
    (f"tools/sweep.py status {SWEEP} milestones=[1e40]", "too large; a whole number is at most 9.22e+18"),
    (f"tools/sweep.py status {SWEEP} executor.slurm.options.requeue=false", "leave the option out"),
    ("tools/cache_latents.py --input videos/ --out x", "--input: no such option; did you mean '--source'"),
    ("tools/plan.py --law missing.json --flops 1e20", "missing.json: no such file"),
    ("tools/plan.py --law paper --flops 1e20", "paper: no such file; did you mean 'configs/laws/paper.json'?"),
    ("tools/plan.py --law configs/laws/papper.json --flops 1e20", "no such file; did you mean 'paper.json'?"),
    (
        "tools/plan.py --law configs/laws/paper.json --flops 1e22TFLOPs",
        "--flops '1e22TFLOPs': must be a number without",
    ),
    ("tools/plan.py --law configs/laws/paper.json --flops 1e20 --estimator measure", "did you mean 'measured'?"),
    (
        "tools/report.py {folder}/smal --law configs/laws/paper.json --out r.html",
        "smal: no such file or folder; did yo",
    ),
    (
        "tools/report.py {folder}/small --out r.html",
        "the following arguments are required: --law, law file from tools/",
    ),
    ("tools/fit.py all {folder}/smal --out l.json", "smal: no such file or folder; did you mean 'small'?"),
    ("train.py data.cache={folder}/cach train.batch_tokens=80", "cach: no latent cache here; did you mean 'cache'?"),
    ("tools/cache_latents.py --source {folder}/smal --out {folder}/c", "or tar; did you mean 'small'?"),
    ("tools/predict.py runs.csv", "the following arguments are required: --law"),
    ("tools/predict.py --law configs/laws/paper.json missing.csv", "missing.csv: no such file"),
    ("tools/predict.py --law missing.json results/doom/before_2x192/rows.csv", "missing.json: no such file"),
    ("tools/predict.py --law configs/laws/paper.json {folder}/runs", "a folder; give a table"),
    ("tools/predict.py --law configs/laws/paper.json runs.csv --output x.csv", "did you mean '--out'"),
    ("tools/fit.py hyperparameters runs.csv --method surfaces", "invalid choice: 'surfaces'"),
    ("tools/fit.py hyperparameters runs.csv --method surfaces", "; did you mean 'surface'?"),
    ("tools/fit.py al runs.csv", "; did you mean 'all'?"),
    ("tools/sweep.py stat {sweep}", "; did you mean 'status'?"),
    (f"{SAMPLE} runs/x --format mp5", "; did you mean 'mp4'?"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("typed")
    checkpoint = folder / "runs" / "x" / "checkpoints" / "step_0000001"
    checkpoint.mkdir(parents=True)
    for path in (checkpoint / "state.json", checkpoint / "ema.safetensors", folder / "model.pt"):
        path.write_text("{}")
    (folder / "sweep.yaml").write_text("sizes: [{size: 2x64}]\nlr: [1e-3]\nbatch_tokens: [640]\nmilestones: [64000]\n")
    for name in ("small", "cache"):
        (folder / name).mkdir()
    config = load_config(None, ["train.batch_tokens=320", "train.tokens=64000", "train.milestones=[64000]"])
    (folder / "small" / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    (folder / "cache" / "index.json").write_text("{}")
    (folder / "link.yaml").symlink_to(folder / "link.yaml")
    return folder


def answer(typed: list[str]) -> str:
    done = call(*typed)
    assert (done.returncode, done.stdout) == (2, ""), done.stdout
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(("typed", "fix"), MISTAKES)
def test_a_mistake_is_answered_in_one_line_with_the_fix(typed: str, fix: str, folder: Path) -> None:
    places = {"folder": folder, "sweep": folder / "sweep.yaml"}
    said = answer([word.format(**places) for word in typed.split(" ")])
    assert fix.format(**places) in said


def test_there_are_forty() -> None:
    assert len(MISTAKES) >= 40


def test_a_message_is_one_line_of_printable_text_whatever_is_named() -> None:
    """Of a file or a table's columns: a newline makes two lines, an escape moves the terminal's cursor."""
    said = answer(["tools/plan.py", "--law", "a\nb\x1b[2J\u2028.json", "--flops", "1e20"])
    assert said.startswith("error: --law a\\nb\\x1b[2J\\u2028.json: no such file; give a law file")


@pytest.mark.parametrize("bad", ["a\nrm -rf x", "a\rb", "a\x1b[31m", "a\x00b", "a\u2028b", "a\tb"])
@pytest.mark.parametrize(
    "key",
    [
        "name",
        "out",
        "executor.slurm.partition",
        "executor.slurm.account",
        "executor.slurm.mem",
        "executor.slurm.options.qos",
        "config.data.cache",
    ],
)
def test_control_characters_reach_no_batch_script(key: str, bad: str, folder: Path) -> None:
    said = answer(["tools/sweep.py", "status", str(folder / "sweep.yaml"), f"{key}={bad}"])
    assert "control character" in said
    if not key.startswith("executor"):
        assert "control character" in answer(["train.py", f"{key.removeprefix('config.')}={bad}"])
