module cluster/pause

go 1.27.0
