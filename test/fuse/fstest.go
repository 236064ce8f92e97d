// Runs testing/fstest, the tests that Go has for filesystems, on a folder:
//
//	go run fstest.go FOLDER PATH...
//
// Each PATH must be found below it.
package main

import (
	"fmt"
	"os"
	"testing/fstest"
)

func main() {
	if err := fstest.TestFS(os.DirFS(os.Args[1]), os.Args[2:]...); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
