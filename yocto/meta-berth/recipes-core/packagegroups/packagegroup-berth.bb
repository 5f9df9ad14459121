SUMMARY = "What a node with berth needs beside the kernel"

inherit packagegroup

RDEPENDS:${PN} = " \
    berth \
    kmod \
"
# Needed by what some workloads ask for; a node without them refuses those by name.
RRECOMMENDS:${PN} = " \
    kernel-modules \
    util-linux-nsenter \
"
