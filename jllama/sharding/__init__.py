"""How a model lies on several devices: what is cut, and how programs run on the parts.

Tensor parallelism (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053): queries, keys, values and the
cache are cut by key head, gate and up by F, the head by V; o and down by what they contract, so that their
results are sums over the devices. Norms, biases of such sums and the embedding table lie on each device.
"""

from jllama.sharding.cuts import WHOLE as WHOLE
from jllama.sharding.cuts import Blocks as Blocks
from jllama.sharding.cuts import check as check
from jllama.sharding.cuts import check_groups as check_groups
from jllama.sharding.cuts import cut_axis as cut_axis
from jllama.sharding.cuts import local as local
from jllama.sharding.cuts import refusal as refusal
from jllama.sharding.cuts import specs as specs
from jllama.sharding.cuts import widened as widened
from jllama.sharding.mesh import CACHE as CACHE
from jllama.sharding.mesh import acquaint as acquaint
from jllama.sharding.mesh import beside as beside
from jllama.sharding.mesh import bytes_on_each as bytes_on_each
from jllama.sharding.mesh import devices_under as devices_under
from jllama.sharding.mesh import empty_cache as empty_cache
from jllama.sharding.mesh import everywhere as everywhere
from jllama.sharding.mesh import joined as joined
from jllama.sharding.mesh import local_shapes as local_shapes
from jllama.sharding.mesh import mesh_of as mesh_of
from jllama.sharding.mesh import mesh_under as mesh_under
from jllama.sharding.mesh import own_devices as own_devices
from jllama.sharding.split import split_leaf as split_leaf
from jllama.sharding.split import split_params as split_params
from jllama.sharding.split import with_head as with_head
