"""Makes the golden files of mc-text: tiny tokenizers, chat templates, and what transformers does with them.

Run with the versions below: `python make.py`. It writes one directory per tokenizer beside itself, and `classes/`; with
names of these as arguments only those.
"""

import json
import random
import shutil
import sys
from pathlib import Path

import jinja2
import tokenizers
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

import classes

assert transformers.__version__ == "5.23.0", transformers.__version__
assert tokenizers.__version__ == "0.23.3", tokenizers.__version__
assert jinja2.__version__ == "3.1.6", jinja2.__version__

HERE = Path(__file__).parent

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox doesn't.",
    "A tokenizer cuts text into pieces, and a model reads the pieces one by one.",
    "List all files in the current directory: ls -la | grep '.rs' > files.txt",
    "def main():\n    for i in range(10):\n        print(i, i ** 2)\n    return None\n",
    "fn main() {\n    let numbers = vec![1, 2, 3];\n    println!(\"{:?}\", numbers);\n}\n",
    "In the beginning there was a word, and the word was split into bytes.",
    "We're sure they'll say that it's what we've done, but I'd wait.",
    "Größe, café, naïve, über, señor, Łódź, Привет мир, здравствуй, Ελλάδα",
    "你好世界。今天天气很好。こんにちは世界。안녕하세요 세계.",
    "1234567890 3.14159 2,718 100% $5.00 #1 @home user@example.org https://example.org/a?b=c&d=e",
]

TEXTS = [
    "",
    " ",
    "  ",
    "    ",
    "\n",
    "\n\n",
    " \n ",
    "\t",
    "\r\n",
    "a",
    " a",
    "a ",
    "  a  ",
    "Hello, world!",
    "hello world",
    "The quick brown fox jumps over the lazy dog.",
    "The  quick   brown    fox",
    "line one\nline two\n\nline four\n",
    "    indented\n\tand tabbed\n",
    "don't we're I'LL they'VE it's HE'D",
    "1234567890",
    "3.14159 and 2,718",
    "x=1+2*3/(4-5)",
    "café",
    "cafe\u0301",
    "Å Å Å",
    "ﬁ ligature and ① ２",
    "naïve Größe ſ ẞ İ ı",
    "Привет, мир!",
    "Ελλάδα",
    "你好，世界。",
    "今天天气很好abc你好",
    "こんにちは世界",
    "안녕하세요 세계",
    "शुभ प्रभात",
    "ไทยไม่มีช่องว่าง",
    "مرحبا بالعالم",
    "שלום עולם",
    "😀",
    "😀😃😄",
    "a😀b",
    "👩‍👩‍👧‍👦 family",
    "🇩🇪🇫🇷",
    "👍🏽",
    "e\u0301\u0323\u0308 stacked",
    "zero\u200bwidth\u200djoin\ufeff",
    "non\u00a0breaking\u2003em\u3000ideographic",
    "\u0000\u0001\u007f",
    "\u2028line\u2029separators\u0085",
    "\ufffd replacement \ufffd\ufffd",
    "\ufdd0\uffff noncharacters \U0010ffff",
    "▁metaspace ▁▁ itself",
    "<0x41> spelled out",
    "Ġ Ċ ĉ byte alphabet",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|im_start|><|im_start|> <|im_end|>",
    "<|im_sta",
    "<s> </s> <unk>",
    "text</s>text",
    " <s>  spaced  </s> ",
    "<tool_call>{\"a\": 1}</tool_call>",
    "https://example.org/path?query=a%20b&c=d#e",
    "fn main() {\n    println!(\"{}\", 1);\n}\n",
    "\"quotes\" 'single' `ticks` “curly” ‘inner’ — dash … dots",
    "UPPER lower MiXeD snake_case kebab-case CamelCase",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "ab" * 20,
    "the " * 8,
]

# The pattern of Qwen2's tokenizer.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def special(content):
    return AddedToken(content, special=True, normalized=False)


def byte_level():
    """As GPT-2 and Llama 3: byte-level BPE; BOS comes from the post-processor; truncation and padding are set."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[special(t) for t in ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>",
                                             "<|start_header_id|>", "<|end_header_id|>"]],
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(
            single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B",
            special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))],
        ),
    ])
    return tokenizer


def qwen():
    """As Qwen2: NFC, a split pattern with look-ahead, ChatML, added tokens that are not special."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([special(t) for t in ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ["<tool_call>", "</tool_call>"]])
    return tokenizer


def metaspace():
    """As Llama 2: metaspace by normalizer, byte fallback, BOS."""
    trainer = trainers.BpeTrainer(
        vocab_size=440, show_progress=False,
        special_tokens=["<unk>", "<s>", "</s>", *[f"<0x{byte:02X}>" for byte in range(256)]],
    )
    # No Chinese, Japanese or Korean: that is left to the byte tokens. (`limit_alphabet` would choose anew each time.)
    corpus = [text for text in CORPUS if all(ord(c) < 0x2000 for c in text)]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(corpus, trainer)
    model = json.loads(trained.to_str())["model"]
    tokenizer = Tokenizer(models.BPE(
        vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]],
        unk_token="<unk>", fuse_unk=True, byte_fallback=True,
    ))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])
    tokenizer.add_special_tokens([special(t) for t in ["<unk>", "<s>"]])
    # "</s>" is only in the vocabulary: that it is special comes from tokenizer_config.json.
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


CHATML = """\
{% for message in messages %}
    {% if loop.first and message['role'] != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
    {% endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

# Tools, thinking that is dropped from history, macros, namespaces, slices and string methods.
TOOLS = """\
{%- macro content_of(message) -%}
    {%- if message.content is string -%}
        {{- message.content }}
    {%- elif message.content is iterable -%}
        {%- for part in message.content if part.type == 'text' -%}
            {{- part.text }}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- content_of(messages[0]) + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + content_of(messages[0]) + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_user=-1, calls=0) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' %}
        {%- set ns.last_user = messages|length - 1 - loop.index0 %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- continue %}
    {%- endif %}
    {%- set content = content_of(message) %}
    {%- if message.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last_user %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content.strip() }}
        {%- if message.tool_calls %}
            {%- for call in message.tool_calls %}
                {%- set ns.calls = ns.calls + 1 %}
                {%- if call.function %}{% set call = call.function %}{% endif %}
                {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
                {%- if call.arguments is string %}{{ call.arguments }}{% else %}{{ call.arguments | tojson }}{% endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- elif message.role.startswith('us') %}
        {{- '<|im_start|>user\\n' + content + '<|im_end|>\\n' }}
    {%- else %}
        {{- raise_exception('Unknown role: ' + message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

HEADERS = """\
{{- bos_token }}
{%- set system_message = "" %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if not tools is none %}
    {{- "Environment: ipython\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- "Today Date: " + (date_string if date_string is defined else "26 Jul 2024") + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- '{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

INST = """\
{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {{- ", " if not loop.last else "]" }}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.first and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""

GENERATION = """\
{% for message in messages %}
    {% if message.role == 'assistant' %}
{{ '<|im_start|>assistant\\n' }}
        {%- generation %}
{{ message.content }}{{ '<|im_end|>' }}
        {%- endgeneration %}

    {% else %}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""

# What Python prints where it is not what JSON or another engine would print, and filters that templates use.
PRINTING = """\
{{ none }}|{{ true }}|{{ 1.0 }}|{{ 1 / 4 }}|{{ 7 // 2 }}|{{ -7 % 3 }}|{{ [1, 'a', none, true] }}|{{ {'a': 1} }}|{{ undefined_thing }}
{{ 'a' ~ 1 ~ true ~ none }}|{{ [1, 2] + [3] }}|{{ 'ab' * 2 }}|{{ 'abc'[::-1] }}|{{ 'abcd'[1:-1] }}|{{ 'x'.upper() }}
{{ '%s-%d' | format('a', 3) }}|{{ ' a b '.split() }}|{{ 'a,b'.split(',') }}|{{ 'a' in 'abc' }}|{{ 'k' in {'k': 1} }}
{{ [3, 1, 2] | sort | join(', ') }}|{{ {'b': 1, 'a': 2} | dictsort }}|{{ 'x' | default('y') }}|{{ nothing | default('y') }}
{{ messages | map(attribute='role') | list }}|{{ messages | selectattr('role', 'eq', 'user') | list | length }}
{{ 'a-b' | replace('-', '+') }}|{{ 'title case' | title }}|{{ 'x' if false }}|{{ range(3) | list }}|{{ 'é' | length }}
{{ '<b>&"\\'' | tojson }}|{{ '<b>' | e }}|{{ "a\\nb" | indent(2) }}|{{ 'ab' | first }}|{{ [1, 2] | last }}|{{ 5 | string }}
{{ messages[0] | tojson(ensure_ascii=True, sort_keys=True) }}|{{ {'a': [1, {}], 'b': 1e-7} | tojson(indent=2) }}
{{ {'a': 1.0, 'é': 'ü'} | tojson(ensure_ascii=False, separators=(',', ':')) }}|{{ messages[0].get('x', 'none') }}|{{ messages[0].keys() | list }}
{% for key, value in {'a': 1, 'b': 2}.items() %}{{ loop.index }}:{{ key }}={{ value }}{{ ';' if not loop.last }}{% else %}empty{% endfor %}

{% set x = namespace(n=0) %}{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{% set x.n = x.n + i %}{% endfor %}{{ x.n }}
{{ 'abc'.startswith(('x', 'a')) }}|{{ 'a\\nb\\n'.splitlines() }}|{{ 'aXbX'.rstrip('X') }}|{{ 'abcabc'.find('c') }}|{{ 'a'.join(['1', '2']) }}|{{ 'a b'.title() }}|{{ 'Ab'.lower() }}
{{ 1 is number }}|{{ 'a' is string }}|{{ {} is mapping }}|{{ [] is iterable }}|{{ none is none }}|{{ zzz is defined }}|{{ 2 is even }}|{{ true is boolean }}|{{ 'a' is iterable }}|{{ [1] is sequence }}|{{ 'a' is sequence }}
{{ {'items': 1, 'keys': 2}.items() | list }}|{{ {'items': {'a': 1}}['items'] }}|{{ {'get': 1}.get('x') }}|{{ 'x' in zzz }}
{{ messages[0] }}|{{ {'a': "it's", 'b': [none, 1.5, 'é\n']} }}|{{ 1 == 1.0 }}|{{ 'xxaxx'.strip('x') }}|{{ {'b': 1} | items | list }}
{{ [{'n': 'b'}, {'n': 'a'}] | sort(attribute='n') | map(attribute='n') | join('') }}|{{ 'a b c'.split(' ', 1) }}|{{ 'a' < 'b' }}|{{ (1, 2) }}|{{ not none }}|{{ 'A' | lower }}|{{ '  x ' | trim }}|{{ -3 | abs }}|{{ 3.7 | int }}|{{ [1, 2, 2] | unique | list }}
{{- '  kept?  ' }}   {#- comment -#}   end
"""

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a place <now> & later, in °C; it's \"quoted\"",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "Ort, 例えば 東京"},
                "days": {"type": "array", "items": {"type": "integer"}, "default": [1, 2.5, 1e-7]},
            },
            "required": ["place"],
        },
    },
}
ADD = {"type": "function", "function": {"name": "add", "description": "", "parameters": {}, "return": None}}

USER = {"role": "user", "content": "Hello, who are you?"}
BOT = {"role": "assistant", "content": "  I am a model.\n"}
SYSTEM = {"role": "system", "content": " Answer in one word. "}
MORE = {"role": "user", "content": "Grüße & <b>你好</b> 😀"}
CONVERSATIONS = {
    "one": [USER],
    "turns": [USER, BOT, MORE],
    "system": [SYSTEM, USER, BOT, MORE, {"role": "assistant", "content": "Yes"}],
    "thinking": [USER, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nI am."}, MORE,
                 {"role": "assistant", "reasoning": "why\n", "content": "Because."}],
    "tools": [SYSTEM, USER,
              {"role": "assistant", "content": None,
               "tool_calls": [{"type": "function", "function": {
                   "name": "get_weather", "arguments": {"place": "Łódź", "days": [1, 2]}}}]},
              {"role": "tool", "content": "{\"t\": 21.5}"}],
    "parts": [{"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "image"},
                                           {"type": "text", "text": "two"}]}],
    "wrong": [{"role": "assistant", "content": "first"}, {"role": "critic", "content": "x"}],
}
OPTIONS = {
    "plain": {},
    "prompt": {"add_generation_prompt": True},
    "tools": {"tools": [WEATHER, ADD], "add_generation_prompt": True},
    "extra": {"add_generation_prompt": True, "enable_thinking": False, "date_string": "1 Jan 2026"},
}


def render(tokenizer, template):
    cases = []
    for conversation, messages in CONVERSATIONS.items():
        for option, kwargs in OPTIONS.items():
            try:
                result = {"text": tokenizer.apply_chat_template(
                    messages, chat_template=template, tokenize=False, **kwargs)}
            except (TypeError, jinja2.exceptions.UndefinedError):
                # An operation in the template failed, such as text plus null; the words are the engine's own.
                result = {"error": None}
            except jinja2.exceptions.TemplateError as error:
                result = {"error": str(error)}
            cases.append({"messages": conversation, "options": option, **result})
    return cases


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def make(name, tokenizer, config, templates):
    if NAMES and name not in NAMES:
        return
    directory = HERE / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    # Both would cut or fill texts if they were obeyed.
    tokenizer.enable_truncation(max_length=5)
    tokenizer.enable_padding(length=4, pad_id=0, pad_token=tokenizer.id_to_token(0))
    write(directory / "tokenizer.json", json.loads(tokenizer.to_str()))
    write(directory / "tokenizer_config.json", config)
    loaded = PreTrainedTokenizerFast.from_pretrained(directory)
    loaded._tokenizer.no_truncation()
    loaded._tokenizer.no_padding()

    texts = []
    for text in TEXTS:
        plain = loaded(text, add_special_tokens=False)["input_ids"]
        around = loaded(text)["input_ids"]
        texts.append({
            "text": text, "ids": plain, "with_special": around,
            "decoded": loaded.decode(plain), "decoded_skip": loaded.decode(around, skip_special_tokens=True),
        })
    draw = random.Random(0)
    random_ids = []
    for _ in range(30):
        ids = [draw.randrange(len(loaded)) for _ in range(draw.randrange(1, 12))]
        random_ids.append({"ids": ids, "decoded": loaded.decode(ids),
                           "decoded_skip": loaded.decode(ids, skip_special_tokens=True)})
    write(directory / "expected.json", {
        "vocab_size": len(loaded),
        "special_tokens": loaded.special_tokens_map,
        "special_ids": sorted(id for id in range(len(loaded))
                              if loaded.decode([id]) and not loaded.decode([id], skip_special_tokens=True)),
        "texts": texts,
        "random_ids": random_ids,
        "chats": {key: render(loaded, template) for key, template in templates.items()},
    })
    for key, template in templates.items():
        (directory / f"{key}.jinja").write_text(template, encoding="utf-8")
    # The generation blocks as transformers counts them, in characters.
    if "generation" in templates:
        from transformers.utils.chat_template_utils import render_jinja_template

        spans = {}
        for conversation in ["one", "turns", "system"]:
            text, indices = render_jinja_template(
                [CONVERSATIONS[conversation]], chat_template=templates["generation"], return_assistant_tokens_mask=True)
            spans[conversation] = [text[0][start:end] for start, end in indices[0]]
        write(directory / "generation.json", spans)


NAMES = sys.argv[1:]
if not NAMES or "classes" in NAMES:
    classes.make(HERE / "classes", write)
if not NAMES:
    write(HERE / "conversations.json", {"messages": CONVERSATIONS, "options": OPTIONS})
make(
    "byte_level", byte_level(),
    {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "add_bos_token": False, "add_eos_token": True,
     "pad_token": None, "clean_up_tokenization_spaces": True},
    {"headers": HEADERS},
)
make(
    "qwen", qwen(),
    {"add_bos_token": False, "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
     "additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|not_in_the_file|>"]},
    {"chatml": CHATML, "tools": TOOLS, "generation": GENERATION, "printing": PRINTING},
)
make(
    "metaspace", metaspace(),
    {"bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False, "normalized": False, "rstrip": False,
                   "single_word": False},
     "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False, "normalized": False, "rstrip": False,
                   "single_word": False},
     "unk_token": "<unk>", "pad_token": None, "add_bos_token": True, "add_eos_token": True, "model_max_length": 5},
    {"inst": INST},
)
