"""Turns files into batches: records, template, chat, split, tokenize, ledger; without weights."""
