"""The embedded world: 64 px pictures of coloured shapes and signs, with a renderer, a grammar and a detector.

It lets the whole of imgrl run for real without a download: prompts follow GenEval's grammar and metadata
format, pictures are rendered truth, and a rule-based detector judges generated images with GenEval's rules.
"""
