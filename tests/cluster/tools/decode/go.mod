module fedhelp.test/cluster/tools/decode

go 1.26.0
