# ruff: noqa: E501  a message stays in one piece, as it is read
"""Wrong sweeps and command lines, with what is said about them."""

from __future__ import annotations

from tests.config.wrong_trials import HEAD, KNOBS, SETTINGS, wrong

DOMAINS = "{uniform: [a, b]}, {log_uniform: [a, b]}, {int: [a, b]} or {choice: [...]}"

AXES = [
    wrong(
        "an empty axis",
        HEAD + "grid:\n  defense.beta: []\n",
        "s.yaml:3: grid.defense.beta: expected at least one value, got []",
    ),
    wrong(
        "a value twice",
        HEAD + "grid:\n  defense.beta:\n  - 1\n  - 2\n  - 1.0\n",
        "s.yaml:6: grid.defense.beta[2]: expected each value once, got 1.0 again",
    ),
    wrong(
        "no lists",
        HEAD + "grid:\n  defense.beta: 0.5\n  defense: {steps: [1, 2]}\n",
        "s.yaml:3: grid.defense.beta: expected a list of values, got 0.5",
        "s.yaml:4: grid.defense: expected a list of values, got {'steps': [1, 2]}. Write whole paths: 'defense.steps'",
    ),
    wrong(
        "one bad value of an axis",
        HEAD + "grid:\n  defense.alpha_c:\n  - 0.2\n  - 1.2\n",
        "s.yaml:5: grid.defense.alpha_c[1]: expected a number from 0 to 1, got 1.2",
    ),
    wrong(
        "axes that name nothing",
        HEAD + "grid:\n  defense.bta: [1, 2]\n  defence.beta: [1, 2]\n  trial.seed: [0, 1]\n",
        f"s.yaml:3: grid.defense.bta: expected a knob of tiny: {KNOBS}, got 'bta'. Did you mean 'beta'?",
        f"s.yaml:4: grid.defence.beta: expected a setting of the trial: {SETTINGS}, got 'defence'. Did you mean 'defense'?",
        f"s.yaml:5: grid.trial.seed: expected a setting of the trial: {SETTINGS}, got 'trial'. Leave out 'trial.'",
    ),
    wrong(
        "a knob of one of two plugins",
        HEAD + "grid:\n  defense: [tiny, other]\n  defense.beta: [1, 2]\n",
        "s.yaml:4: grid.defense.beta: expected a knob of other: depth, got 'beta'. Axes of one plugin only belong in 'when'",
    ),
    wrong(
        "values that do not go together",
        HEAD + "grid:\n  defense.alpha_c: [0.3, 0.9]\n  defense.alpha_p: [0.05, 0.2]\nseeds: [0, 1]\n",
        "s.yaml:3: grid.defense.alpha_c[1]: expected alpha_c + alpha_p of at most 1, got 1.1. Here defense.alpha_c=0.9, defense.alpha_p=0.2; 'exclude' leaves such points out",
    ),
    wrong(
        "values that would go together with a base that is right",
        "trial: {dataset: toy, defense: {name: tiny, alpha_p: 0.05, steps: no}}\ngrid:\n  defense.alpha_c: [0.3, 0.95]\n",
        "s.yaml:1: defense.steps: expected an integer of at least 1, got 'no'",
    ),
    wrong(
        "an axis that changes nothing",
        HEAD + "grid:\n  data_root: [a, b]\n",
        "s.yaml:3: grid.data_root: expected a setting that can change the result, got 'data_root'",
    ),
    wrong(
        "a setting varied in two places",
        HEAD + "grid:\n  seed: [0, 1]\nvary:\n  seed: [0, 1]\nseeds: [0, 1]\n",
        "s.yaml:5: vary.seed: expected each setting to be varied in one place, got 'seed' in grid too",
        "s.yaml:6: seeds: expected each setting to be varied in one place, got 'seed' in grid too",
    ),
    wrong(
        "lists out of step",
        HEAD + "zip:\n  defense.beta: [1, 2]\n  seed: [0, 1, 2]\n",
        "s.yaml:2: zip: expected lists of equal length, got 2 for defense.beta, 3 for seed",
    ),
    wrong(
        "a trial twice",
        HEAD + "grid:\n  defense: [tiny, {name: tiny}]\n",
        "s.yaml:3: grid.defense[1]: expected every trial once, got the same one for defense='tiny' and for defense={'name': 'tiny'}",
    ),
    wrong(
        "what would be twice if the base were not wrong",
        "trial:\n  dataset: toy\n  model: resnet_s\n  defense: {name: gssd, beta_nd: 1.5, lambda: 0.05, beta: 3}\n"
        "vary:\n  defense.beta_nd: [0.6, 1.5]\n  defense.lambda: [0.05, 0.75]\n",
        "s.yaml:4: defense.beta: expected a knob of gssd, got 'beta'. Did you mean 'beta_d'?",
    ),
    wrong(
        "exclude that meets nothing",
        HEAD + "grid:\n  defense.beta: [1, 2]\nexclude:\n- defense.beta: 3\n- defense.bta: 1\n",
        "s.yaml:5: exclude[0]: expected settings that some trial has, got {'defense.beta': 3}",
        "s.yaml:6: exclude[1].defense.bta: expected a setting of the trials, got 'defense.bta'. Did you mean 'defense.beta'?",
    ),
    wrong(
        "nothing left",
        HEAD + "exclude:\n- defense: tiny\n",
        "s.yaml:2: exclude: expected at least one trial to be left, got none",
    ),
    wrong(
        "when",
        HEAD + "when:\n- if: {defense: other}\n  grid: {defense.depth: [1, 2]}\n- grid: {seed: [0, 1]}\n",
        "s.yaml:3: when[0].if: expected settings that some trial has, got {'defense': 'other'}",
        "s.yaml:5: when[1].if: expected a mapping that is not empty, got nothing",
    ),
    wrong(
        "too many trials",
        HEAD
        + "grid:\n"
        + "".join(f"  defense.{k}: {list(range(1, 100))}\n" for k in ("beta", "steps", "limit")),
        "s.yaml:2: grid: expected at most 100,000 trials, got 970,299",
    ),
    wrong(
        "one of the seeds",
        "trial: {dataset: toy, defense: tiny, attack: {name: blend, dialect: backdoorbench}}\nseeds: [0, 4294967296]\n",
        "s.yaml:2: seeds[1]: expected at most 4294967295, as dialect 'backdoorbench' seeds NumPy's generator with it, got 4294967296",
    ),
    wrong(
        "one of the data seeds and of the attack's",
        "trial: {dataset: toy, defense: tiny, attack: {name: blend, dialect: backdoorbench}}\ngrid:\n  data_seed: [0, 4294967296]\n  attack.seed: [null, 4294967297]\n",
        "s.yaml:3: grid.data_seed[1]: expected at most 4294967295, as dialect 'backdoorbench' seeds NumPy's generator with it, got 4294967296",
        "s.yaml:4: grid.attack.seed[1]: expected at most 4294967295, as dialect 'backdoorbench' seeds NumPy's generator with it, got 4294967297",
    ),
    wrong(
        "seeds", HEAD + "seeds: 3\n", "s.yaml:2: seeds: expected a list of seeds, such as [0, 1, 2], got 3"
    ),
]

SEARCH = [
    wrong(
        "search beside a grid",
        HEAD + "grid:\n  seed: [0, 1]\nsearch:\n  trials: 3\n  space: {defense.beta: {uniform: [0, 1]}}\n",
        "s.yaml:2: grid: expected no finite axes beside 'search', got 'grid'. A choice in 'search.space' takes a list of values",
    ),
    wrong(
        "search of the wrong form",
        HEAD + "search:\n  sampler: tp\n  trials: 0\n  space:\n    defense.beta: {unifrm: [0, 1]}\n",
        "s.yaml:3: search.sampler: expected one of the samplers: tpe, random, qmc, nsga2, gp, got 'tp'. Did you mean 'tpe'?",
        "s.yaml:4: search.trials: expected an integer from 1 to 100000, got 0",
        f"s.yaml:6: search.space.defense.beta: expected {DOMAINS}",
    ),
    wrong(
        "search space",
        HEAD
        + """search:
  trials: 4
  space:
    defense.beta: {uniform: [1, 0]}
    defense.alpha_c: {uniform: [0, 2]}
    defense.steps: {uniform: [1, 5]}
    defense.warmup.lr: {log_uniform: [0, 1]}
    defense.mode: {choice: [fast, medium]}
    defense.bta: {int: [1, 2]}
    defense.limit: {int: [1.5, 2]}
    seed: {choice: []}
""",
        "s.yaml:5: search.space.defense.beta.uniform: expected two numbers, the smaller one first, got [1, 0]",
        "s.yaml:6: search.space.defense.alpha_c.uniform[1]: expected a number from 0 to 1, got 2",
        "s.yaml:7: search.space.defense.steps.uniform[2]: expected an integer of at least 1, got 2.527864",
        "s.yaml:8: search.space.defense.warmup.lr.log_uniform: expected numbers above 0, got [0, 1]",
        "s.yaml:9: search.space.defense.mode.choice[1]: expected 'fast' or 'slow', got 'medium'",
        f"s.yaml:10: search.space.defense.bta.int: expected a knob of tiny: {KNOBS}, got 'bta'. Did you mean 'beta'?",
        "s.yaml:11: search.space.defense.limit.int: expected two integers, the smaller one first, got [1.5, 2]",
        "s.yaml:12: search.space.seed.choice: expected at least one value, got []",
    ),
    wrong(
        "search without a space",
        HEAD + "search: {trials: 4}\n",
        "s.yaml:2: search.space: expected a mapping that is not empty, got nothing",
    ),
    wrong(
        "an oracle that hides",
        HEAD + "select: {metric: der}\n",
        "s.yaml:2: select.metric: expected 'oracle_der', as it reads the report data, or select_acc, select_clean_acc, select_trigger_acc, select_der, select_clean_der, got 'der'",
    ),
    wrong(
        "nothing held out to choose by",
        HEAD + "select: {metric: select_acc}\n",
        "s.yaml:2: select.metric: expected 'holdout' above 0 for select_acc, which is measured on the part held out, got holdout: 0. Set holdout: 0.1",
    ),
    wrong(
        "no clean images held out to stamp",
        HEAD + "select: select_trigger_acc\n",
        "s.yaml:2: select.metric: expected 'holdout_clean' above 0 for select_trigger_acc, which is measured on the part held out, got holdout_clean: 0. Set holdout_clean: 0.1",
    ),
    wrong(
        "a spread over one seed",
        HEAD + "select: oracle_der_stable\n",
        "s.yaml:2: select.metric: expected two seeds or more for oracle_der_stable, which reads the spread over them, got one seed. Set seeds: [0, 1, 2]",
    ),
    wrong(
        "an oracle that hides in its spread",
        HEAD + "select: der_stable\nseeds: [0, 1]\n",
        "s.yaml:2: select.metric: expected 'oracle_der_stable', as it reads the report data, or select_acc, select_clean_acc, select_trigger_acc, select_der, select_clean_der, got 'der_stable'",
    ),
    wrong(
        "a spread over the seeds of a search",
        HEAD + "search: {trials: 4, metric: oracle_der_stable, space: {defense.beta: {uniform: [0, 1]}}}\n",
        "s.yaml:2: search.metric: expected a rule of single trials, such as oracle_der, got 'oracle_der_stable'. The settings of a search have one seed each",
    ),
    wrong(
        "accuracy under an attack that nobody makes",
        HEAD + "select: {metric: oracle_robust_acc}\n",
        "s.yaml:2: select.metric: expected 'evaluation.robust' to be pgd for oracle_robust_acc, which is measured under an attack, got evaluation.robust: none. Set evaluation.robust: pgd",
    ),
    wrong(
        "unknown metric",
        HEAD + "select: {metric: oracle_dre}\n",
        "s.yaml:2: select.metric: expected one of the metrics: oracle_acc, oracle_asr, oracle_asr_all, oracle_ra, oracle_der, oracle_noise_acc, oracle_robust_acc, select_acc, select_clean_acc, select_trigger_acc, select_der, select_clean_der, got 'oracle_dre'. Did you mean 'oracle_der'?",
    ),
    wrong(
        "unknown way to choose over several attacks",
        HEAD + "select: {metric: oracle_der, over: wrst}\n",
        "s.yaml:2: select.over: expected 'each', 'mean' or 'worst', got 'wrst'. Did you mean 'worst'?",
    ),
    wrong(
        "unknown scheduler",
        HEAD + "scheduler: asah\n",
        "s.yaml:2: scheduler: expected one of the schedulers: none, asha, hyperband, median, got 'asah'. Did you mean 'asha'?",
    ),
    wrong(
        "a scheduler for two objectives",
        HEAD
        + "scheduler: asha\nsearch:\n  trials: 4\n  metric: [oracle_acc, asr]\n  space: {seed: {int: [0, 9]}}\n",
        "s.yaml:2: scheduler: expected one that takes 2 objectives, got 'asha', which takes 1",
        "s.yaml:5: search.metric[1]: expected 'oracle_asr', as it reads the report data, or select_acc, select_clean_acc, select_trigger_acc, select_der, select_clean_der, got 'asr'",
    ),
    wrong(
        "one mode for two metrics",
        HEAD
        + "search:\n  trials: 4\n  metric: [oracle_acc, oracle_asr]\n  mode: max\n  space: {seed: {int: [0, 9]}}\n",
        "s.yaml:2: search: expected one mode for each metric, got 1 for 2",
    ),
    wrong(
        "resources",
        HEAD + "resources: {cpu: 0, gpu: 1.5, gpus: 1}\nretries: -1\n",
        "s.yaml:2: resources.cpu: expected a number above 0, got 0",
        "s.yaml:2: resources.gpu: expected a fraction of one GPU or a whole number of them, got 1.5",
        "s.yaml:2: resources.gpus: expected a knob of the sweep's resources: cpu, gpu, got 'gpus'. Did you mean 'gpu'?",
        "s.yaml:3: retries: expected an integer from 0 to 100, got -1",
    ),
    wrong(
        "reference",
        HEAD
        + "published:\n- {params: {defence.beta: 1}, metrics: {acc: 92.2, ars: 0.1}, source: a paper}\n"
        + "- {metrics: {acc: 0.9}}\n",
        f"s.yaml:3: published[0].params.defence.beta: expected a setting of the trial: {SETTINGS}, got 'defence'. Did you mean 'defense'?",
        "s.yaml:3: published[0].metrics.acc: expected a number from 0 to 1, got 92.2",
        "s.yaml:3: published[0].metrics.ars: expected one of the metrics: acc, asr, asr_all, ra, der, noise_acc, robust_acc, select_acc, select_clean_acc, select_trigger_acc, select_der, select_clean_der, undefended/acc, undefended/asr, got 'ars'. Did you mean 'asr'?",
        "s.yaml:4: published[1].source: expected text, got nothing",
    ),
    wrong(
        "a table",
        HEAD
        + "table:\n  rows: [attack, defense.bta, seed, defence]\n  columns: [attack]\n  cells: [acc, ars]\n  summary: [best]\n",
        "s.yaml:6: table.summary[0]: expected 'mean' or 'worst', got 'best'",
    ),
    wrong(
        "settings of a table",
        HEAD
        + "table:\n  rows:\n  - attack\n  - defense.bta\n  - seed\n  - defence\n  columns: [attack]\n  cells: [acc, ars]\n",
        "s.yaml:5: table.rows[1]: expected a setting that some trial has, got 'defense.bta'. Did you mean 'defense.beta'?",
        "s.yaml:6: table.rows[2]: expected a setting over which cells are not averaged, got 'seed'",
        f"s.yaml:7: table.rows[3].defence: expected a setting of the trial: {SETTINGS}, got 'defence'. Did you mean 'defense'?",
        "s.yaml:8: table.columns[0]: expected each setting in one place, got 'attack' in table.rows too",
        "s.yaml:9: table.cells[1]: expected one of the metrics: acc, asr, asr_all, ra, der, noise_acc, robust_acc, select_acc, select_clean_acc, select_trigger_acc, select_der, select_clean_der, undefended/acc, undefended/asr, got 'ars'. Did you mean 'asr'?",
    ),
]

COMMAND_LINE = [
    wrong(
        "a bare word",
        HEAD,
        "command line: defense.beta: expected key=value, as in 'dataset=cifar10', got 'defense.beta'",
        words=("defense.beta",),
    ),
    wrong(
        "several words",
        HEAD,
        "command line: defense.beta=: defense.beta: expected a value after '=' and each comma, got ''",
        "command line: seed=0,: seed: expected a value after '=' and each comma, got '0,'",
        "command line: defense.mode=[fast: defense.mode: expected a value as in YAML, got '[fast' (while parsing a flow sequence, expected ',' or ']', but got '<stream end>')",
        "command line: defnse.beta=1: defnse.beta: expected a setting, got 'defnse'. Did you mean 'defense'?",
        "command line: attack.rate=0.1: attack.rate: expected an attack beside its knobs, as in 'attack=badnets', got none",
        words=("defense.beta=", "seed=0,", "defense.mode=[fast", "defnse.beta=1", "attack.rate=0.1"),
    ),
    wrong(
        "wrong values",
        HEAD,
        "command line: defense.beta=0.5,-1: grid.defense.beta[1]: expected a number of at least 0, got -1",
        "command line: dataset=tyo: dataset: expected one of the datasets: {datasets}, got 'tyo'. Did you mean 'toy'?",
        "command line: retries=1,2: retries: expected an integer from 0 to 100, got [1, 2]",
        words=("defense.beta=0.5,-1", "dataset=tyo", "retries=1,2"),
    ),
    wrong(
        "one of a zip",
        HEAD + "zip: {defense.beta: [1, 2], seed: [0, 1]}\n",
        "command line: seed=3: seed: expected a setting that 'zip' does not sweep together with defense.beta. Edit 'zip' in the file, or give it anew as zip={...}",
        words=("seed=3",),
    ),
    wrong(
        "a zip of what is varied elsewhere",
        HEAD + "seeds: [0, 1]\n",
        "command line: zip.seed=[0, 3]: zip.seed: expected each setting to be varied in one place, got 'seed' in seeds too",
        "command line: seeds=-0.0: seed: expected a setting that 'zip' does not sweep together with nothing else. Edit 'zip' in the file, or give it anew as zip={...}",
        words=("zip.seed=[0, 3]", "seeds=-0.0"),
    ),
    wrong(
        "all in one go, in order",
        "name: a b\ntrial:\n  dataset: toy\n  attack: {name: badnets, rate: 2}\n  defense: {name: tiny, beta: x}\n  sed: 1\ngrid:\n  defense.alpha_c: [0.5, 3]\n  defense.mod: [fast]\nselect: {metric: acc}\n",
        "s.yaml:1: name: expected at most 100 letters, digits, '.', '_' or '-', got 'a b'",
        "s.yaml:4: attack.rate: expected a number from 0 to 1 or null, got 2",
        "s.yaml:5: defense.beta: expected a number of at least 0, got 'x'",
        f"s.yaml:6: trial.sed: expected a setting of the trial: {SETTINGS}, got 'sed'. Did you mean 'seed'?",
        "s.yaml:8: grid.defense.alpha_c[1]: expected a number from 0 to 1, got 3",
        f"s.yaml:9: grid.defense.mod: expected a knob of tiny: {KNOBS}, got 'mod'. Did you mean 'mode'?",
        "s.yaml:10: select.metric: expected 'oracle_acc', as it reads the report data, or select_acc, select_clean_acc, select_trigger_acc, select_der, select_clean_der, got 'acc'",
        "command line: holdout=2: holdout: expected a number of at least 0 and below 1, got 2",
        words=("holdout=2",),
    ),
]
