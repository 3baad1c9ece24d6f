// Stands in for github.com/ishidawataru/sctp, whose sockets the tests' kernel does not have (sctp.go says how).
module github.com/ishidawataru/sctp

go 1.26.0
