"""What a wrong word may have meant: the nearest of the known names, by letters and by meaning.

`ALIASES` holds the words of other tools and of papers for the names of options, settings, commands and values. A name
that has a new alias needs one word here.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

MIN_LETTERS = 0.75  # of `difflib`, for whole names
MIN_MEANING = 0.6
FROM_HELP = 0.65  # score of a name whose help text has all words
MAX_LETTERS = 60  # the rest of a longer word says nothing, and comparing it takes time
MAX_PARTS, MAX_ENTRIES = 30, 10_000  # of a path, and of a folder that is searched for a similar name
MIN_WORD = 4  # letters of a word that may be misspelt, or is looked for in help texts

ALIASES: Mapping[str, str] = {  # phrases, separated by commas
    # options and settings
    "keep": "sparsity, ratio, prune ratio, pruning rate, prune rate, amount, target, keep ratio, keep rate, "
    "compression, compression ratio, remaining, budget, reduce, reduction, target size, target ratio, density, "
    "fraction, prune",
    "keep-params": "params, parameters, size, target params, param budget, model size, max params",
    "keep-macs": "macs, flops, gflops, gmacs, ops, target flops, multiply adds, max macs, speedup, speed up, compute",
    "latency": "ms, milliseconds, time limit, max latency, target latency, inference time, fps, speed",
    "max-drop": "drop, tolerance, accuracy drop, max loss, acc drop, degradation, accuracy loss",
    "head-width": "head dim, dim head, head size, narrow",
    "depth": "layers, num layers, remove blocks, blocks, drop layers, num blocks, remove layers, drop blocks",
    "multiple-of": "round to, divisor, align, alignment, granularity, round, channel multiple",
    "on": "runtime, backend, engine, latency device, provider",
    "latency-batch": "benchmark batch, batch latency",
    "data": "dataset, datasets, images, image folder, root, data path, dataset path, input, source, data root, "
    "train data, imagefolder, dataset name, train",
    "train-dir": "train path, train folder, train root, training data",
    "val-dir": "valid dir, validation dir, eval dir, test dir, val path, val folder, validation data",
    "data-dir": "download dir, download, cache dir",
    "class-names": "labels, label names, names, classes file, label map, id2label, class map, names file, labels file",
    "holdout": "val split, validation split, val fraction, valid pct, val ratio, val size, test size",
    "limit-per-class": "max samples, shots, few shot, num samples, subset, max images, max train samples, per class",
    "num-workers": "workers, jobs, loader workers, dataloader num workers, dataloader workers, cpus, j",
    "value-range": "range, bit depth, window, max value",
    "strict": "fail on error, no skip",
    "split": "subset, part, which split",
    "against": "compare, baseline, reference, versus, vs, other, second",
    "eval-batch": "batch size, bs, batch, b, test batch size, val batch size",
    "batch-size": "bs, batch, b, train batch size, per device train batch size, mini batch",
    "learning-rate": "lr, base lr, step size, lr0, max lr, peak lr, blr",
    "epochs": "num epochs, epoch, num train epochs, n epochs, max epochs, steps, iterations, iters, "
    "max steps, finetune epochs",
    "seed": "random seed, random state, rng, manual seed",
    "recipe": "config, cfg, config file, yaml, hyp, preset, conf, settings file, c",
    "set": "override, overrides, setting, option, opts, hparams, param",
    "teacher": "distill, distillation, kd, teacher model, distill from, distillation model, kd model",
    "scores": "importance, load scores, importance file",
    "output": "out, out dir, save, save dir, output dir, project, logdir, exp, dest, target dir, name, work dir, o",
    "log": "tensorboard, wandb, logger, tracker, report to, tracking, mlflow, trackio, log with, log wandb, comet",
    "arch": "architecture, model name, model type, backbone, model",
    "pretrained": "imagenet weights, load weights, use pretrained, from pretrained, weights",
    "num-classes": "classes, nc, n classes, nb classes, num labels, outputs",
    "img-size": "image size, imgsz, resolution, input size, size, input resolution, crop size, res, image resolution",
    "patch-size": "patch",
    "model-arg": "model kwargs, kwargs, model args",
    "mean": "norm mean, image mean",
    "std": "norm std, image std, variance",
    "crop-pct": "crop, center crop, crop ratio",
    "interpolation": "resample, resize mode, filter",
    "int8": "static quantization, quantize, quant, quantise, quantization, ptq, 8bit, i8, qdq, dynamic quantization",
    "half": "fp16, float16, f16, half precision",
    "batch": "fixed batch, static batch, batch size, bs, max batch",
    "opset": "onnx version, opset version, target opset",
    "format": "to, type, include, target, f, export format",
    "with-preprocessing": "preprocess, end to end, e2e, include preprocessing, normalize, embed preprocessing, softmax",
    "image-size": "resolution, imgsz, img size, input size",
    "private": "visibility, is private",
    "license": "licence",
    "weight_decay": "wd, l2, decay",
    "warmup_epochs": "warmup, warmup steps, lr warmup",
    "clip_gradient": "clip grad, grad clip, gradient clipping, max grad norm, clip",
    "drop_path": "stochastic depth, drop path rate, dropout, droppath",
    "ema_decay": "ema, model ema, moving average",
    "accumulate": "grad accum, gradient accumulation steps, accumulation, grad accum steps",
    "precision": "amp, fp16, bf16, dtype, mixed precision, autocast, half, no amp",
    "compile": "torch compile, torchcompile, no compile",
    "shard": "fsdp, zero, deepspeed, sharding, fsdp2",
    "checkpoint_minutes": "save every, save interval, save freq, checkpoint interval, save steps",
    "evaluate_every": "eval freq, eval interval, val interval, eval every, eval steps",
    "layer_decay": "llrd, layerwise decay, layer wise lr decay",
    "min_learning_rate": "min lr, lr min, final lr, lrf",
    "criterion": "importance type, method, metric, saliency, taylor, pruner",
    "num_images": "calib size, calibration images, num calib, calib samples, calibration samples, calibration",
    "temperature": "tau, kd temperature, t",
    "ridge": "lambda, regularization, damping",
    "rand_augment_ops": "aug, augment, randaug, aa, auto augment, augmentation",
    "mixup": "mix up",
    "cutmix": "cut mix",
    "label_smoothing": "smoothing",
    # commands
    "compress": "prune, shrink, slim, pruning, sparsify, distill, optimize, run, reduce, make small",
    "train": "finetune, fine tune, fit, learn, tune",
    "evaluate": "eval, test, val, validate, validation, accuracy, score, benchmark, compare, predict, bench",
    "inspect": "info, show, summary, describe, stats, profile, analyze, analyse, count, flops, params",
    "plan": "dry run, preview, estimate, analyze plan",
    "export": "convert, onnx, quantize, deploy, save, to onnx, package, tflite, coreml, openvino",
    "verify": "check, doctor, validate run",
    "push": "upload, publish, hub, push to hub, release, deploy hub",
    "watch": "status, monitor, progress, tensorboard, logs, tail, ps, top",
    "models": "list, zoo, list models, ls, search, supported, architectures, model",
    "datasets": "data, list data, dataset, list datasets",
    "demo": "example, quickstart, tutorial, start",
    # values
    "cuda": "gpu, nvidia",
    "cpu": "torch, pytorch, eager",
    "onnxruntime": "onnx, ort",
    "onnx": "ort, onnxruntime, tensorrt, trt, engine",
    "torch-export": "pt2, torchscript, pt, pytorch, jit, torch, exported program, ts, aot",
    "openvino": "ov, ir, xml, intel",
    "executorch": "pte, et, android, mobile, xnnpack",
    "coreml": "mlmodel, mlpackage, ios, apple, iphone",
    "litert": "tflite, tf, tensorflow, tfl, lite, edgetpu",
    "val": "validation, valid, eval, dev",
    "cifar10": "cifar",
    "tiny-imagenet": "imagenet, tiny, tinyimagenet",
}
REMOVED = re.compile(r"sparsity|prun|remov|reduc|compression|drop|amount")  # of a fraction: what goes, not what stays

# What no option does, by what people look for.
ADVICE: Mapping[str, str] = {
    "device, gpu, gpus, cuda, device id, gpu id, cpu, no cuda, mps, local rank, use cpu": (
        "vitrim trains on a GPU if there is one, and exports on the CPU. With the variable ACCELERATE_USE_CPU=true it "
        "uses the CPU; CUDA_VISIBLE_DEVICES selects a GPU; torchrun uses several."
    ),
    "public": "A repository is public unless --private is given.",
    "resume, continue, resume from checkpoint, auto resume, ckpt, load from, restart, checkpoint": (
        "The same command continues an interrupted run."
    ),
    "model, weights, model path, m, network, checkpoint path, pretrained model": (
        "The model is the first word after the command, without an option."
    ),
    "verbose, debug, quiet, silent, v, q": "What a command does is written to standard error.",
    "force, overwrite, exist ok, overwrite output dir, yes, y": (
        "vitrim overwrites no run: give another folder with -o, or delete the folder."
    ),
    "ddp, distributed, nproc, num gpus, world size, multi gpu, num processes": (
        "Several GPUs are used with torchrun --nproc-per-node N -m vitrim."
    ),
}


def nearest(word: str, names: Mapping[str, str] | Iterable[str]) -> str | None:
    """Find the name that a wrong word most likely meant.

    Args:
        word: as typed, such as `lr` or `--pruning-ratio`.
        names: the known names; of a mapping, the values are help texts.

    Returns:
        One of the names: the most similar by letters, else by meaning. None if none is near.
    """
    word = word[:MAX_LETTERS]
    help_texts = dict(names) if isinstance(names, Mapping) else dict.fromkeys(names, "")
    plain = {_plain(name): name for name in reversed(list(help_texts))}
    if close := difflib.get_close_matches(_plain(word), plain, n=1, cutoff=MIN_LETTERS):
        return plain[close[0]]
    scores = {name: _score(word, name, text) for name, text in help_texts.items()}
    best = max(scores, key=lambda name: scores[name], default=None)
    return best if best is not None and scores[best] >= MIN_MEANING else None


def nearest_path(path: Path) -> Path | None:
    """A file or folder that exists and whose path differs from `path` in one misspelt name; None if there is none."""
    parts = path.parts[:MAX_PARTS]
    for index, part in enumerate(parts):
        place = Path(*parts[:index])
        try:
            if (place / part).exists():
                continue
            names = sorted(entry.name for entry in islice(place.iterdir(), MAX_ENTRIES))
        except OSError:
            return None
        found = [place.joinpath(near, *parts[index + 1 :]) for near in difflib.get_close_matches(part, names, n=3)]
        return next((candidate for candidate in found if candidate.exists()), None)
    return None


def advice_for(word: str) -> str | None:
    """What to do instead of an option that vitrim does not have, such as `--device`; None if nothing is known."""
    for phrases, sentence in ADVICE.items():
        if any(_plain(phrase) == _plain(word) for phrase in phrases.split(",")):
            return sentence
    return None


def says_what_goes(word: str) -> bool:
    """Whether a name such as `--sparsity` states what is removed, and not what is kept."""
    return bool(REMOVED.search(word)) and "keep" not in word


def _score(word: str, name: str, text: str) -> float:
    """How near a word is to a name with this help text, from 0 to 1."""
    own = _words(name)
    aliases = ALIASES.get(_plain(name)) or ALIASES.get(_plain(name).replace("-", "_")) or ""
    phrases = [own, *(_words(phrase) for phrase in aliases.split(",") if phrase)]
    typed = _words(word)
    score = max((_agreement(typed, phrase) for phrase in phrases), default=0.0)
    long = {part for part in typed if len(part) >= MIN_WORD}
    if long and long == typed and long <= _words(text):
        score = max(score, FROM_HELP)
    return score


def _agreement(one: set[str], other: set[str]) -> float:
    """How many words of two phrases are the same, from 0 to 1: the harmonic mean of both fractions."""
    if not one or not other:
        return 0.0
    found = sum(any(_same(word, candidate) for candidate in other) for word in one)
    back = sum(any(_same(word, candidate) for candidate in one) for word in other)
    return 2 * (found / len(one)) * (back / len(other)) / (found / len(one) + back / len(other)) if found else 0.0


def _same(one: str, other: str) -> bool:
    if one == other:
        return True
    return min(len(one), len(other)) >= MIN_WORD and difflib.SequenceMatcher(None, one, other).ratio() >= 0.8


def _plain(name: str) -> str:
    """A name without dashes before it, in lower case, with one kind of separator: `learning-rate`."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name.strip().lstrip("-"))
    return re.sub(r"[\s_.]+", "-", spaced).lower()


def _words(text: str) -> set[str]:
    """The words of a name or text, without endings: `prun` for `prune`, `pruning` and `pruned`."""
    return {_stem(word) for word in re.split(r"[^a-z0-9]+", _plain(text)) if word}


def _stem(word: str) -> str:
    word = word.replace("ise", "ize").replace("isation", "ization")
    for ending in ("ization", "ation", "ize", "ing", "ions", "ion", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word
