"""Text as token ids, by folder: characters or GPT-2's byte pairs, made once, kept in a cache and mapped into memory."""

from certkit.text.tokenizers import GPT2 as GPT2
from certkit.text.tokenizers import Character as Character
from certkit.text.tokens import TextData as TextData
from certkit.text.tokens import Tokens as Tokens
from certkit.text.tokens import load_text as load_text
