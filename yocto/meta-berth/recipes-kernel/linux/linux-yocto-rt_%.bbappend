# In force only with the distro feature: the layer alone changes no kernel.
require ${@bb.utils.contains('DISTRO_FEATURES', 'berth', 'berth-kernel.inc', '', d)}
