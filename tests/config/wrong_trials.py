# ruff: noqa: E501  a message stays in one piece, as it is read
"""Wrong files and wrong trials, with what is said about them."""

from __future__ import annotations

from typing import NamedTuple

HEAD = "trial: {dataset: toy, defense: tiny}\n"
SETTINGS = (
    "attack, baseline, clean, data_root, data_seed, dataset, defense, evaluation, holdout, holdout_clean, model, "
    "numerics, pipeline, seed"
)
KNOBS = "alpha_c, alpha_p, beta, limit, milestones, mode, on, steps, warmup"


class Wrong(NamedTuple):
    """A file, what stands on the command line, and the lines of the message."""

    name: str
    text: str
    words: tuple[str, ...]
    messages: tuple[str, ...]


def wrong(name: str, text: str, *messages: str, words: tuple[str, ...] = ()) -> Wrong:
    return Wrong(name, text, words, messages)


FORM = [
    wrong(
        "syntax",
        "trial: {dataset: toy\nseed: 1",
        "s.yaml:2: expected valid YAML, got while parsing a flow mapping, expected ',' or '}', but got ':'",
    ),
    wrong(
        "tab",
        "trial:\n\tdataset: toy",
        "s.yaml:2: expected valid YAML, got while scanning for the next token, found character '\\t' that cannot start any token",
    ),
    wrong("empty file", "", "s.yaml: expected settings such as 'dataset: digits', got an empty file"),
    wrong("a list", "- a\n- b", "s.yaml:1: expected settings such as 'dataset: digits', got ['a', 'b']"),
    wrong(
        "a key twice",
        "trial:\n  dataset: toy\n  defense: tiny\n  dataset: digits\n",
        "s.yaml:4: trial.dataset: expected each key once, got it again (first in line 2)",
    ),
    wrong(
        "a tag that runs code",
        "trial:\n  dataset: !!python/object/apply:os.system [ls]\n  defense: tiny\n",
        "s.yaml:2: trial.dataset: expected a plain value, got the tag !!python/object/apply:os.system",
    ),
    wrong(
        "aliases that explode",
        "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n"
        + "".join(
            f"{n}: &{n} [{', '.join(f'*{p}' for _ in range(9))}]\n"
            for p, n in zip("abcde", "bcdef", strict=True)
        ),
        "s.yaml:1: expected at most 50,000 values, got more (do its aliases repeat each other?)",
    ),
    wrong(
        "unknown section",
        HEAD + "serch: {trials: 3}\n",
        "s.yaml:2: serch: expected a setting, got 'serch'. Did you mean 'search'?",
    ),
    wrong(
        "unknown setting of the trial",
        "trial:\n  dataset: toy\n  defense: tiny\n  modle: resnet18\n",
        f"s.yaml:4: trial.modle: expected a setting of the trial: {SETTINGS}, got 'modle'. Did you mean 'model'?",
    ),
    wrong(
        "beside trial",
        "trial:\n  defense: tiny\ndataset: toy\n",
        "s.yaml:3: dataset: expected the trial's settings under 'trial:', got 'dataset' beside it",
    ),
    wrong(
        "a name that is a path",
        "name: ../../etc\n" + HEAD,
        "s.yaml:1: name: expected at most 100 letters, digits, '.', '_' or '-', got '../../etc'",
    ),
]

TRIAL = [
    wrong(
        "unknown plugin",
        "trial:\n  dataset: toy\n  defense: tyny\n",
        "s.yaml:3: defense: expected one of the defenses: {defenses}, got 'tyny'. Did you mean 'tiny'?",
    ),
    wrong(
        "unknown plugin by name",
        "trial:\n  dataset: toy\n  defense: tiny\n  attack:\n    rate: 0.1\n    name: badnet\n",
        "s.yaml:6: attack.name: expected one of the attacks: {attacks}, got 'badnet'. Did you mean 'badnets'?",
    ),
    wrong(
        "known, but not offered",
        "trial:\n  dataset: toy\n  defense: tiny\n  attack:\n    name: dfst\n",
        "s.yaml:5: attack.name: expected what bdtune can make; DFST (Deep Feature Space Trojan, Cheng et al., AAAI 2021) is known, but not offered: its trigger is a style that a generator, trained on photographs of sunsets which are not here, paints, and its detoxification takes control of the victim's training, got 'dfst'. Make its poisoned set with the authors' code (github.com/Megum1/DFST), save it as a record of BackdoorBench, and take that with attack={name: record, path: FOLDER, hand_over: data}",
    ),
    wrong(
        "unknown preset",
        "trial:\n  dataset: toy\n  defense: tiny\n  attack: {preset: abl/badnet}\n",
        "s.yaml:4: attack.preset: expected one of abl's presets: {presets}, got 'abl/badnet'. Did you mean 'abl/badnets'?",
    ),
    wrong(
        "a preset of no paper",
        "trial:\n  dataset: toy\n  defense: tiny\n  attack: {preset: bn/badnets}\n",
        "s.yaml:4: attack.preset: expected one of the presets of {papers}, got 'bn/badnets'. Did you mean 'abl/badnets'?",
    ),
    wrong(
        "a preset in the place of a name",
        "trial:\n  dataset: toy\n  defense: tiny\n  attack: abl/badnets\n",
        "s.yaml:4: attack: expected one of the attacks: {attacks}, got 'abl/badnets'. A preset is written as {preset: abl/badnets}",
    ),
    wrong(
        "a knob of another attack",
        "trial:\n  dataset: toy\n  defense: tiny\n  attack: {name: label_consistent, all_to_all: true}\n",
        "s.yaml:4: attack.all_to_all: expected a knob of label_consistent, got 'all_to_all'. A clean-label attack changes no label",
    ),
    wrong(
        "a pattern that is not there",
        "trial:\n  dataset: toy\n  defense: tiny\n  attack: {name: blend, pattern_path: none.png}\n",
        "s.yaml:4: attack.pattern_path: expected a readable file, got {cwd}/none.png (No such file or directory)",
    ),
    wrong(
        "another attack's preset",
        "trial:\n  dataset: toy\n  defense: tiny\n  attack: {preset: abl/badnets, name: blend}\n",
        "s.yaml:4: attack.name: expected 'badnets', whose preset 'abl/badnets' is, got 'blend'",
    ),
    wrong(
        "unknown knob",
        "trial:\n  dataset: toy\n  defense:\n    name: tiny\n    beta_d: 0.1\n",
        f"s.yaml:5: defense.beta_d: expected a knob of tiny: {KNOBS}, got 'beta_d'. Did you mean 'beta'?",
    ),
    wrong(
        "knobs of a network inside a defense",
        "trial:\n  dataset: toy\n  defense:\n    name: lfd\n    teacher:\n      epochs: 0\n      model:\n        name: resnet_s\n        stem_width: 2.0\n        wide: 4\n",
        "s.yaml:6: defense.teacher.epochs: expected an integer of at least 1, got 0",
        "s.yaml:10: defense.teacher.model.wide: expected a knob of resnet_s: stem, stem_width, got 'wide'",
    ),
    wrong(
        "an attack's preset for a defense",
        "trial:\n  dataset: toy\n  defense: {name: other, preset: abl/badnets}\n",
        "s.yaml:3: defense.preset: expected one of the presets of {defense_papers}, got 'abl/badnets'",
    ),
    wrong(
        "a defense's preset in the place of a name",
        "trial:\n  dataset: toy\n  defense: fst/lp\n",
        "s.yaml:3: defense: expected one of the defenses: {defenses}, got 'fst/lp'. A preset is written as {preset: fst/lp}",
    ),
    wrong(
        "a preset of a kind without any",
        "trial:\n  dataset: {name: toy, preset: abl/badnets}\n  defense: tiny\n",
        "s.yaml:2: dataset.preset: expected a knob of toy: image_size, mirrors, resize, size, standardise, test_limit, train_limit, got 'preset'. Did you mean 'resize'?",
    ),
    wrong(
        "unknown knob inside another",
        "trial:\n  dataset: toy\n  defense:\n    name: tiny\n    warmup:\n      epoch: 3\n",
        "s.yaml:6: defense.warmup.epoch: expected a knob of tiny's warmup: epochs, lr, got 'epoch'. Did you mean 'epochs'?",
    ),
    wrong(
        "unknown knob inside a setting that may be null",
        "trial:\n  dataset: toy\n  baseline:\n    epoch: 3\n",
        "s.yaml:4: baseline.epoch: expected a knob of the trial's baseline: augment, batch_size, epochs, gamma, lr, milestones, momentum, nesterov, optimizer, schedule, weight_decay, got 'epoch'. Did you mean 'epochs'?",
    ),
    wrong(
        "a knob one level too high",
        "trial:\n  dataset: toy\n  defense: {name: tiny, lr: 3}\n",
        f"s.yaml:3: defense.lr: expected a knob of tiny: {KNOBS}, got 'lr'. Did you mean 'warmup.lr'?",
    ),
    wrong(
        "a number that is none of a few",
        "trial: {dataset: {name: digits, side: 36}, defense: tiny}\n",
        "s.yaml:1: dataset.side: expected 16 or 32, got 36. Did you mean '32'?",
    ),
    wrong(
        "a rate in percent",
        "trial:\n  dataset: toy\n  defense: tiny\n  attack:\n    name: badnets\n    rate: 10\n",
        "s.yaml:6: attack.rate: expected a number from 0 to 1 or null, got 10",
    ),
    wrong(
        "fractions of more than all",
        "trial:\n  dataset: toy\n  defense:\n    name: tiny\n    alpha_c: 0.9\n    alpha_p: 0.2\n",
        "s.yaml:3: defense: expected alpha_c + alpha_p of at most 1, got 1.1",
    ),
    wrong(
        "ill-typed values",
        "trial:\n  dataset: toy\n  defense: {name: tiny, beta: high, steps: 2.5,\n    on: yes, mode: fats}\n",
        "s.yaml:3: defense.beta: expected a number of at least 0, got 'high'",
        "s.yaml:3: defense.steps: expected an integer of at least 1, got 2.5",
        "s.yaml:4: defense.mode: expected 'fast' or 'slow', got 'fats'. Did you mean 'fast'?",
        "s.yaml:4: defense.on: expected true or false, got 'yes'",
    ),
    wrong(
        "a seed that a dialect cannot take",
        "trial:\n  dataset: toy\n  defense: tiny\n  attack: {name: badnets, dialect: backdoorbench}\n  seed: 4294967296\n",
        "s.yaml:5: seed: expected at most 4294967295, as dialect 'backdoorbench' seeds NumPy's generator with it, got 4294967296",
    ),
    wrong(
        "a data seed that a dialect cannot take",
        "trial:\n  dataset: toy\n  defense: tiny\n  attack: {name: badnets, dialect: backdoorbench}\n  data_seed: 4294967296\n",
        "s.yaml:5: data_seed: expected at most 4294967295, as dialect 'backdoorbench' seeds NumPy's generator with it, got 4294967296",
    ),
    wrong(
        "an attack's seed that a dialect cannot take",
        "trial:\n  dataset: toy\n  defense: tiny\n  seed: 4294967297\n  attack:\n    name: badnets\n    dialect: backdoorbench\n    seed: 4294967296\n",
        "s.yaml:8: attack.seed: expected at most 4294967295, as dialect 'backdoorbench' seeds NumPy's generator with it, got 4294967296",
    ),
    wrong(
        "a trigger seed that a dialect cannot take",
        "trial:\n  dataset: toy\n  defense: tiny\n  attack: {name: wanet, dialect: backdoorbox, trigger_seed: 4294967296}\n",
        "s.yaml:4: attack: expected settings that agree: dialect 'backdoorbox' seeds NumPy's generator with trigger_seed, at most 4294967295, got 4294967296",
    ),
    wrong(
        "quoted number, list item, mapping",
        "trial:\n  dataset: toy\n  defense:\n    name: tiny\n    limit: '10'\n    milestones: [0.5, x]\n    warmup: 3\n",
        "s.yaml:5: defense.limit: expected an integer of at least 1 or null, got '10'",
        "s.yaml:6: defense.milestones[1]: expected a number from 0 to 1, got 'x'",
        "s.yaml:7: defense.warmup: expected a mapping, got 3",
    ),
    wrong(
        "not a number",
        "trial:\n  dataset: toy\n  defense: {name: tiny, beta: .nan}\n",
        "s.yaml:3: defense.beta: expected a number of at least 0, got NaN",
    ),
    wrong(
        "a class out of range",
        "trial:\n  dataset: toy\n  defense: tiny\n  attack:\n    name: badnets\n    target: 3\n",
        "s.yaml:6: attack.target: expected a class from 0 to 2, got 3",
    ),
    wrong(
        "a data set that is not there",
        "trial:\n  dataset: cifar10\n  defense: tiny\n  data_root: nowhere\n",
        "s.yaml:4: data_root: expected CIFAR-10 as cifar10/train.parquet with cifar10/test.parquet or torchvision's cifar-10-batches-py/, got no such folder in {cwd}/nowhere. Set data_root (or the variable BDTUNE_DATA) to the folder that holds it, or fetch it with --download",
    ),
    wrong(
        "settings out of range",
        "trial: {dataset: toy, defense: tiny, seed: -1, holdout: 1.5, pipeline: streams}\n",
        "s.yaml:1: seed: expected an integer of at least 0, got -1",
        "s.yaml:1: holdout: expected a number of at least 0 and below 1, got 1.5",
        "s.yaml:1: pipeline: expected 'auto', 'resident' or 'stream', got 'streams'. Did you mean 'stream'?",
    ),
    wrong(
        "numerics",
        "trial:\n  dataset: toy\n  defense: tiny\n  numerics:\n    precision: fp16\n    devices: cpu\n",
        "s.yaml:5: numerics.precision: expected 'auto', 'fp32' or 'bf16', got 'fp16'. Did you mean 'bf16'?",
        "s.yaml:6: numerics.devices: expected a knob of the trial's numerics: compile, cudnn_benchmark, deterministic, device, fused, micro_batch, precision, tf32, got 'devices'. Did you mean 'device'?",
    ),
]
