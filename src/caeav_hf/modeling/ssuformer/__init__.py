"""
The parts of SSUFormer (Sun et al., "RA-SSU: Towards Fine-Grained Audio-Visual Learning with Region-Aware Sound Source
Understanding").

The authors' code is not public. Docstrings say where a detail comes from: [p] printed in the paper, [fig] read off its
figures, [inf] inferred, [avsf] a fact of AVSegFormer's public code, [ours] decided here as nothing says it.
"""
