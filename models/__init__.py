"""The network: a timm backbone with normalisation inside and a dense head. Also what every other package needs.

`timm_mobilenetv2.TimmClassifier` is the network. `bad_input`, `choices` and `atomic_write` are the lowest layer: any
package may import them, and within this project they import only each other.
"""

import sys

from models.without_compiler import WithoutCompiler

sys.meta_path.insert(0, WithoutCompiler)
