"""A random language model of a few thousand parameters with a tokenizer of characters, saved as stock folders."""


def tokenizer(extra=""):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(set("abcdefghijklmnopqrstuvwxyz0123456789 +-*=;:,." + extra))
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *letters])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def save(folder, *, seed=0, extra="", padding=0):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    own = tokenizer(extra)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(own) + padding,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    own.save_pretrained(folder)
    return folder


def cut_short(folder, into, *, last):
    """A copy of a run that lost its last checkpoint, and where it lies in its recipe."""
    import shutil

    shutil.copytree(folder, into)
    shutil.rmtree(into / "checkpoints" / f"checkpoint-{last}")
    (into / "config.yaml").write_text((into / "config.yaml").read_text().replace(str(folder), str(into)))
    return into


def built(kind, args, lm, data, **more):
    """A trainer of a saved model."""
    import torch
    from datasets import Dataset

    from imgrl.recipe_text import TextModel
    from imgrl.training.text.models import load_model

    torch.manual_seed(0)
    model, tokenizer = load_model(TextModel(path=str(lm)))
    return kind(
        model=model, args=args, processing_class=tokenizer, train_dataset=Dataset.from_list(data), **more
    )
