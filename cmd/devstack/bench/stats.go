package main

import (
	"cmp"
	"math"
	"slices"
)

// quantile of unsorted values, by nearest rank.
func quantile[T cmp.Ordered](values []T, q float64) T {
	var zero T
	if len(values) == 0 {
		return zero
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[max(int(math.Ceil(q*float64(len(sorted))))-1, 0)]
}

func median[T cmp.Ordered](values []T) T { return quantile(values, 0.5) }

// ratios of pairs that were measured one beside the other.
func ratios(ours, bare []float64) []float64 {
	out := make([]float64, min(len(ours), len(bare)))
	for i := range out {
		out[i] = ours[i] / bare[i]
	}
	return out
}
