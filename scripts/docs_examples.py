"""An example of each section of the recipe language, by its title in docs/reference/recipe.md.

Tests validate each against the schema, and say when one lacks a key whose default does not show what it looks like.
"""

EXAMPLES = {
    "top level": """
name: my-assistant
seed: 17
model: {base: meta-llama/Llama-3.2-1B-Instruct}
stages:
  sft: {kind: sft, data: [{path: my.jsonl}]}
""",
    "model": """
model:
  base: meta-llama/Llama-3.2-1B-Instruct
  revision: main                  # a branch, a tag, or a commit to stay at it
  load_in: nf4
  system: You answer in one sentence.
  max_length: 2048
""",
    "adapter": """
adapter: {rank: 64, alpha: 32, targets: [q_proj, k_proj, v_proj, o_proj], modules_to_save: [lm_head]}
""",
    "track": """
track: {wandb: {project: chat}, tensorboard: true}
""",
    "track.wandb": """
track:
  wandb: {project: chat, mode: offline, entity: my-team, tags: [llama3, first-try], samples: 20}
""",
    "kind: sft": """
stages:
  first: {kind: sft, data: [{path: general.jsonl}]}
  second:
    kind: sft
    start_from: first             # go on from the first stage's adapter
    data: [{path: mine.jsonl}, {path: general.jsonl, weight: 0.1}]
    too_long: truncate
    train: {epochs: 3, batch_size: 32, micro_batch_size: 4}
""",
    "kind: reward": """
stages:
  sft: {kind: sft, data: [{path: demos.jsonl}]}
  helpful:
    kind: reward
    start_from: sft
    data: [{path: pairs.jsonl}]
    margin: llama2-small
    slices: [source, language]
    train: {epochs: 1, batch_size: 64}
""",
    "kind: dpo": """
stages:
  sft: {kind: sft, data: [{path: demos.jsonl}]}
  dpo:
    kind: dpo
    start_from: sft
    data: [{path: pairs.jsonl}]
    beta: 0.1
    nll_weight: 0.2
    train: {epochs: 1, batch_size: 64}
""",
    "kind: reject": """
stages:
  sft: {kind: sft, data: [{path: demos.jsonl}]}
  helpful: {kind: reward, start_from: sft, data: [{path: pairs.jsonl}]}
  safe: {kind: reward, start_from: sft, data: [{path: safety-pairs.jsonl}]}
  first: {kind: reject, policy: sft, checker: {kind: finished}, prompts: [{path: old-prompts.jsonl}]}
  best:
    kind: reject
    policy: sft
    reward: helpful
    safety: {reward: safe}        # a second judge, for prompts and answers where safety counts
    prompts: [{path: prompts.jsonl}]
    samples: 16
    threshold: 0.0                # only answers that score at least this
    earlier: [first]              # these samples compete too
    temperature_search: {candidates: [0.8, 1.0, 1.2]}
""",
    "kind: ppo": """
stages:
  sft: {kind: sft, data: [{path: demos.jsonl}]}
  helpful: {kind: reward, start_from: sft, data: [{path: pairs.jsonl}]}
  safe: {kind: reward, start_from: sft, data: [{path: safety-pairs.jsonl}]}
  ppo:
    kind: ppo
    start_from: sft
    reward: helpful
    safety: {reward: safe}
    prompts: [{path: prompts.jsonl}]
    iterations: 200
    kl: 0.01
    target_kl: 6.0                # adapt the weight so that an answer stays about 6 nats from the reference
    clip_score: 5.0
  sums: {kind: ppo, start_from: sft, checker: {kind: number}, prompts: [{path: sums.jsonl}]}
""",
    "kind: grpo": """
stages:
  sft: {kind: sft, data: [{path: demos.jsonl}]}
  helpful: {kind: reward, start_from: sft, data: [{path: pairs.jsonl}]}
  safe: {kind: reward, start_from: sft, data: [{path: safety-pairs.jsonl}]}
  sums: {kind: grpo, start_from: sft, checker: {kind: number}, prompts: [{path: sums.jsonl}], train: {batch_size: 64}}
  kind:
    kind: grpo
    start_from: sums
    reward: helpful
    safety: {reward: safe}
    prompts: [{path: prompts.jsonl}]
    samples: 8
    train: {batch_size: 64}       # 8 prompts with 8 answers each
""",
    "kind: rloo": """
stages:
  sft: {kind: sft, data: [{path: demos.jsonl}]}
  helpful: {kind: reward, start_from: sft, data: [{path: pairs.jsonl}]}
  safe: {kind: reward, start_from: sft, data: [{path: safety-pairs.jsonl}]}
  sums: {kind: rloo, start_from: sft, checker: {kind: number}, prompts: [{path: sums.jsonl}], train: {batch_size: 64}}
  kind:
    kind: rloo
    start_from: sums
    reward: helpful
    safety: {reward: safe}
    prompts: [{path: prompts.jsonl}]
    train: {batch_size: 64}
""",
    "kind: average": """
stages:
  one: {kind: dpo, data: [{path: pairs.jsonl}], beta: 0.1}
  two: {kind: dpo, data: [{path: pairs.jsonl}], beta: 0.05}
  mean: {kind: average, of: [one, two], weights: [3, 1], rank: 64}
""",
    "data and prompts": """
data:
  - {path: mine.jsonl, fields: {prompt: question, completion: answer}}
  - {hub: org/name, subset: en, split: train, revision: main, take: 20000, weight: 0.5}
  - {stage: best}                 # what an earlier stage wrote
""",
    "held_out": """
held_out: {max_rows: 512, data: [{path: held-out.jsonl}]}
""",
    "train": """
train:
  max_steps: 1000
  learning_rate: 2e-4
  batch_size: 64
  micro_batch_size: 4
  gradient_checkpointing: true
  eval_every: 100
  checkpoint_every: 50
  early_stop: 3
""",
    "safety": """
safety: {reward: safe, threshold: 0.15, column: safety}
""",
    "checker of kind number": """
checker: {kind: number, column: answer}
""",
    "checker of kind regex": """
checker: {kind: regex, pattern: '^(yes|no)$', ignore_case: true}
""",
    "checker of kind json": """
checker: {kind: json, keys: [name, city]}
""",
    "checker of kind finished": """
checker: {kind: finished}
""",
    "checker of kind function": """
checker: {kind: function, name: short_and_right, version: 2}
""",
    "temperature_search": """
temperature_search: {candidates: [0.8, 1.0, 1.2], prompts: 32}
""",
    "groups of stages": """
stages:
  sft: {kind: sft, data: [{path: demos.jsonl}]}
  rounds:
    repeat: 2
    stages:
      helpful: {kind: reward, start_from: sft, data: [{path: {round: [a.jsonl, b.jsonl]}, rounds: all}]}
      best: {kind: reject, policy: {first: sft, then: tuned}, reward: helpful, prompts: [{path: prompts.jsonl}]}
      tuned: {kind: sft, data: [{path: demos.jsonl}, {stage: best, rounds: all}]}
""",
}
