module cluster/traefik

go 1.27.0

// Only its files are used, upstream's CRDs: the module as a program does not resolve, so that comes as a wheel.
require github.com/traefik/traefik/v3 v3.7.13
