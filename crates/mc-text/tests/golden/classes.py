"""The cases of `classes/`: what a `tokenizer_class` and its options say over tokenizer.json. `make.py` runs it.

Of classes that transformers 5 makes anew only options are asked here (docs/adr/0012).
"""

import json
import shutil
import tempfile
from pathlib import Path

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer
from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

CORPUS = [
    "The river flows below the bridge, and the mountain stands in a cloud.",
    "Copper, silver and metal: a candle costs 123 coins, 45 at noon.",
    "Über naïve Éclair and café; uber naive eclair cafe",
    "北京 and 今天 are two words, ÉCLAIR is one",
    "don't we're they'll it's The BRIDGE The MOUNTAIN",
]

TEXTS = [
    "",
    " ",
    "metal candle",
    "The River flows",
    "Über naïve ÉCLAIR cafe\u0301",
    "北京今天 and",
    "metal\tand",
    "metal\u3000and",
    "metal candle ",
    "  metal   candle",
    "a\x01b\ufeff",
    "don't I'LL 123 4567",
    "[CLS] river [MASK] bridge [SEP]",
    "<mask> river <mask>bridge</s> cloud",
    "<|endoftext|>hi<|im_end|> there",
]

PAIRS = [["which metal?", "The copper"], ["", "River"]]


def words():
    """Those of the corpus, and its characters; trainers would choose anew each time."""
    texts = CORPUS + [text.lower() for text in CORPUS]
    return sorted({word for text in texts for word in text.split()}), sorted({char for text in texts for char in text} - {" "})


def wordpiece(lowercase):
    """With the words of both cases, so that it matters which is looked for."""
    whole, chars = words()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<s>", "</s>", "<pad>", "<mask>"]
    pieces = dict.fromkeys(special + chars + [f"##{char}" for char in chars] + whole)
    tokenizer = Tokenizer(models.WordPiece({piece: id for id, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(special[:5])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def unigram():
    """As a converted XLM-RoBERTa."""
    whole, chars = words()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [(piece, 0.0) for piece in special] + [("▁", -3.0), ("▁▁", -4.0), ("al", -5.0)]
    pieces += [(char, -4.0) for char in chars if ord(char) < 0x3000] + [(f"▁{word}", -5.0) for word in whole]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.normalizer = normalizers.Replace(Regex(" {2,}"), " ")
    tokenizer.add_special_tokens(special)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def roberta():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


BERT = dict(unk_token="[UNK]", sep_token="[SEP]", pad_token="[PAD]", cls_token="[CLS]", mask_token="[MASK]")
ROBERTA = dict(bos_token="<s>", eos_token="</s>", sep_token="</s>", cls_token="<s>", unk_token="<unk>", pad_token="<pad>", mask_token="<mask>")

# By tokenizer: what makes it, the names of its tokens, and cases as (class, options, model_type).
CASES = {
    "lower": (lambda: wordpiece(True), BERT, [
        ("BertTokenizer", {}, "bert"),
        ("BertTokenizer", dict(do_lower_case=False), "bert"),
        ("BertTokenizerFast", dict(do_lower_case=False, strip_accents=True), None),
        ("BertTokenizer", dict(strip_accents=False), "bert"),
        ("BertTokenizer", dict(tokenize_chinese_chars=False), "bert"),
        ("DistilBertTokenizer", dict(do_lower_case=False), "distilbert"),
        ("DistilBertTokenizerFast", dict(do_lower_case=False, tokenize_chinese_chars=False), "distilbert"),
        ("ElectraTokenizerFast", dict(do_lower_case=False), "electra"),
        ("MPNetTokenizer", dict(do_lower_case=False, bos_token="[CLS]", eos_token="[SEP]"), "mpnet"),
        ("MPNetTokenizerFast", dict(strip_accents=False, bos_token="[CLS]", eos_token="[SEP]"), "mpnet"),
        # None of them is of a class that is made anew.
        ("PreTrainedTokenizerFast", dict(do_lower_case=False), "bert"),
        ("TokenizersBackend", dict(do_lower_case=False), "distilbert"),
        ("BertTokenizer", dict(do_lower_case=False), "modernbert"),
        ("OfNobodyTokenizer", dict(do_lower_case=False), "bert"),
    ]),
    "cased": (lambda: wordpiece(False), BERT, [
        ("BertTokenizer", {}, "bert"),
        ("BertTokenizer", dict(do_lower_case=False), "bert"),
        # By the kind of model.
        (None, {}, "bert"),
        (None, {}, "distilbert"),
        (None, dict(bos_token="[CLS]", eos_token="[SEP]"), "mpnet"),
        (None, {}, "llama"),
        (None, {}, None),
    ]),
    # Runs of spaces collapse by a regular expression.
    "spaces": (unigram, ROBERTA, [
        ("TokenizersBackend", {}, "xlm-roberta"),
        ("PreTrainedTokenizerFast", dict(add_prefix_space=False), None),
    ]),
    "roberta": (roberta, ROBERTA, [
        ("RobertaTokenizer", {}, "roberta"),
        ("RobertaTokenizer", dict(add_prefix_space=True), "roberta"),
        ("RobertaTokenizerFast", dict(add_prefix_space=True), None),
        ("LongformerTokenizerFast", dict(add_prefix_space=True), "longformer"),
        (None, dict(add_prefix_space=True), "roberta"),
        ("GPT2Tokenizer", dict(add_prefix_space=True), "llama"),
        ("PreTrainedTokenizerFast", dict(add_prefix_space=True), "roberta"),
        # What Llama 3 is called.
        ("LlamaTokenizerFast", dict(add_prefix_space=True), "llama"),
    ]),
    "../qwen": (None, dict(eos_token="<|im_end|>", pad_token="<|endoftext|>"), [
        ("Qwen2Tokenizer", {}, "qwen2"),
        ("Qwen2TokenizerFast", dict(add_prefix_space=False), None),
    ]),
}


def make(directory, write):
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    expected = []
    for name, (tokenizer, names, cases) in CASES.items():
        if tokenizer is not None:
            write(directory / f"{name}.json", json.loads(tokenizer().to_str()))
        path = f"{name}.json" if tokenizer is not None else f"{name}/tokenizer.json"
        for kind, options, model in cases:
            files = {"tokenizer_config.json": names | options | ({"tokenizer_class": kind} if kind else {})}
            if model is not None:
                files["config.json"] = {"model_type": model}
            with tempfile.TemporaryDirectory() as folder:
                shutil.copy(directory / path, Path(folder) / "tokenizer.json")
                for file, content in files.items():
                    write(Path(folder) / file, content)
                loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
                plain = transformers.TokenizersBackend.from_pretrained(folder, local_files_only=True)
            for one in (loaded, plain):
                one.backend_tokenizer.no_truncation()
                one.backend_tokenizer.no_padding()
            ids = [loaded(text)["input_ids"] for text in TEXTS]
            # What MPNet's class puts around pairs is its own.
            asked = [] if type(loaded).__name__.startswith("MPNet") else PAIRS
            pairs = loaded([a for a, _ in PAIRS], [b for _, b in PAIRS], return_token_type_ids=True)
            expected.append({
                "tokenizer": path,
                "files": files, "class": type(loaded).__name__, "ids": ids,
                "decoded": loaded.decode([id for one in ids for id in one]),
                "pairs": pairs["input_ids"][:len(asked)], "pair_types": pairs["token_type_ids"][:len(asked)],
                "gives_types": "token_type_ids" in loaded.model_input_names,
                "cut": loaded.truncation_side,
                # Whether the class changes anything.
                "differs": ids != [plain(text)["input_ids"] for text in TEXTS],
            })
            print(f"{name}: {kind} {options} {model}: {type(loaded).__name__}, {expected[-1]['differs']}")
    write(directory / "expected.json", {"texts": TEXTS, "pairs": PAIRS, "cases": expected})
    write(directory / "types.json", types())


def types():
    """By class, whether a model is told of which part of a pair a token is."""
    names = {name for name in dir(transformers) if name.endswith("Tokenizer")}
    names |= {"ElectraTokenizer", "LayoutLMTokenizer", "LongformerTokenizer", "LxmertTokenizer", "OfNobodyTokenizer", "TokenizersBackend"}
    found = {}
    for name in sorted(names):
        kind = tokenizer_class_from_name(name) or transformers.TokenizersBackend
        if issubclass(kind, transformers.PreTrainedTokenizerBase):
            found[name] = "token_type_ids" in kind.model_input_names
    return found
