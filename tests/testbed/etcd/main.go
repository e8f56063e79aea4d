// etcd, as upstream's own main starts it. Debian's 3.4 is too old: the API server's WatchList needs
// the progress notifications of 3.5 and later.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
