# Networks of ordinary workloads are made by the node's CNI plug-ins; a node without them has `none` and `host`.
RRECOMMENDS:${PN} += "cni"
