"""The card's first part: how to load a release with peft, transformers, vLLM, llama.cpp or Ollama, as it fits."""

from __future__ import annotations

from finetune.release.lineage import Manifest

_PROMPT = 'messages = [{"role": "user", "content": "Hello!"}]'
_GENERATE = (
    _PROMPT,
    "inputs = tokenizer.apply_chat_template(",
    '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
    ")",
    "answer = model.generate(**inputs, max_new_tokens=128)",
    'print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
)


def loading_lines(manifest: Manifest) -> list[str]:
    """Lines of Markdown, from the manifest's `published` section."""
    published, kind = manifest["published"], manifest["kind"]
    name = published["name"]
    lines = ["## How to load it", ""]
    if kind == "reject":
        return [
            *lines,
            *_code("from datasets import load_dataset", "", f'rows = load_dataset("{name}", split="train")'),
        ]
    if published["format"] == "gguf":
        return [*lines, *_gguf(name, published["files"])]
    scores = published["scores"]
    if published["format"] == "transformers":
        lines += _code(*(_classifier(name) if scores else _merged(name)))
        return lines if scores else [*lines, "With vLLM:", "", *_shell(f"vllm serve {name}")]
    base, is_on_hub = (published["base_ids"] or published["base_names"])[0], bool(published["base_ids"])
    if not is_on_hub:
        lines += [f"The base, {base}, is not named on the hub: give its folder where `{base}` stands.", ""]
    lines += _code(*(_scored(name, base) if scores else _adapter(name, base, _revision(manifest))))
    if scores:
        return lines
    if problem := published["adapter"]["vllm_problem"]:
        return [*lines, f"vLLM cannot serve this adapter beside its base: {problem}. Merge it first."]
    rank = published["adapter"]["rank"]
    command = f"vllm serve {base} --enable-lora --max-lora-rank {rank} --lora-modules {name.split('/')[-1]}={name}"
    return [*lines, "With vLLM, beside the base:", "", *_shell(command)]


def _revision(manifest: Manifest) -> str | None:
    return manifest["base"]["revision"] if manifest["base"]["name"] in manifest["published"]["base_ids"] else None


def _adapter(name: str, base: str, revision: str | None) -> tuple[str, ...]:
    at = f', revision="{revision}"' if revision else ""
    generate = _GENERATE
    return (
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'base = AutoModelForCausalLM.from_pretrained("{base}"{at})',
        f'model = PeftModel.from_pretrained(base, "{name}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        *generate,
    )


def _scored(name: str, base: str) -> tuple[str, ...]:
    return (
        "from peft import PeftModel",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        f'base = AutoModelForSequenceClassification.from_pretrained("{base}", num_labels=1)',
        f'model = PeftModel.from_pretrained(base, "{name}")',
        *_score(name),
    )


def _classifier(name: str) -> tuple[str, ...]:
    return (
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        f'model = AutoModelForSequenceClassification.from_pretrained("{name}")',
        *_score(name),
    )


def _score(name: str) -> tuple[str, ...]:
    return (
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        'messages = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Good morning."}]',
        'inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)',
        "score = model(**inputs).logits[0, 0]",
    )


def _merged(name: str) -> tuple[str, ...]:
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{name}")',
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
        *_GENERATE,
    )


def _gguf(name: str, files: list[str]) -> list[str]:
    weights = next((file for file in files if file.endswith(".gguf")), "")
    lines = ["With llama.cpp:", "", *_shell(f"llama-cli -hf {name} -cnv"), "With Ollama:", ""]
    if modelfile := next((file for file in files if file.startswith("Modelfile")), None):
        short = name.split("/")[-1].lower()
        return [
            *lines,
            *_shell(f"hf download {name} --local-dir {short}", f"cd {short} && ollama create {short} -f {modelfile}"),
            f"`{modelfile}` names `{weights}`, and holds the template and the stop tokens of the training.",
        ]
    return [*lines, *_shell(f"ollama run hf.co/{name}")]


def _code(*lines: str) -> list[str]:
    return ["```python", *lines, "```", ""]


def _shell(*lines: str) -> list[str]:
    return ["```sh", *lines, "```", ""]
