"""From files to batches: records, template, chat, split, tokenize, ledger. Knows rows and tokens, not weights."""
