// Where the fields of the structures lie, by name: Python compares it with its own at load time; see structures.py.
#pragma once
#include <cstddef>

#include "tables.h"

namespace {

struct Field {                       // a structure, or a field of one
    const char *name;
    i64 offset, size;
};

#define STRUCTURE(s) {#s, 0, sizeof(s)}
#define FIELD(s, f) {#s "." #f, offsetof(s, f), sizeof(s::f)}

const Field FIELDS[] = {
    STRUCTURE(ReduceMatrix), FIELD(ReduceMatrix, data), FIELD(ReduceMatrix, rows), FIELD(ReduceMatrix, width),
    FIELD(ReduceMatrix, dtype), FIELD(ReduceMatrix, row_factor), FIELD(ReduceMatrix, row_sums), FIELD(ReduceMatrix, column_sums),
    FIELD(ReduceMatrix, column_count), FIELD(ReduceMatrix, first_tile), FIELD(ReduceMatrix, last_tile), FIELD(ReduceMatrix, run),
    STRUCTURE(ReduceTile), FIELD(ReduceTile, matrix), FIELD(ReduceTile, row), FIELD(ReduceTile, rows), FIELD(ReduceTile, column),
    FIELD(ReduceTile, columns), FIELD(ReduceTile, segment), FIELD(ReduceTile, row_part), FIELD(ReduceTile, column_part),
    FIELD(ReduceTile, share),
    STRUCTURE(Link), FIELD(Link, source), FIELD(Link, count), FIELD(Link, slots), FIELD(Link, weight),
    STRUCTURE(ScaleMatrix), FIELD(ScaleMatrix, data), FIELD(ScaleMatrix, width), FIELD(ScaleMatrix, dtype),
    FIELD(ScaleMatrix, row_factor), FIELD(ScaleMatrix, column_factor), FIELD(ScaleMatrix, smallest), FIELD(ScaleMatrix, largest),
    STRUCTURE(ScaleTile), FIELD(ScaleTile, matrix), FIELD(ScaleTile, row), FIELD(ScaleTile, rows), FIELD(ScaleTile, column),
    FIELD(ScaleTile, columns), FIELD(ScaleTile, segment), FIELD(ScaleTile, share),
    STRUCTURE(FactorLink), FIELD(FactorLink, destination), FIELD(FactorLink, count), FIELD(FactorLink, ids),
    FIELD(FactorLink, exponent), FIELD(FactorLink, first),
    STRUCTURE(Phase), FIELD(Phase, scale_tiles), FIELD(Phase, reduce_tiles), FIELD(Phase, matrices), FIELD(Phase, links),
    FIELD(Phase, variables), FIELD(Phase, factor_links),
    STRUCTURE(Step), FIELD(Step, matrices), FIELD(Step, reduce_tiles), FIELD(Step, links), FIELD(Step, targets),
    FIELD(Step, scale_tiles), FIELD(Step, factor_links), FIELD(Step, phases), FIELD(Step, phase_count), FIELD(Step, variables),
    FIELD(Step, held), FIELD(Step, octaves), FIELD(Step, exponents), FIELD(Step, roots), FIELD(Step, powers), FIELD(Step, power_count),
    FIELD(Step, variable_count), FIELD(Step, sum_count), FIELD(Step, scale_tile_count), FIELD(Step, reduce_tile_count),
    FIELD(Step, work), FIELD(Step, sums), FIELD(Step, power_table), FIELD(Step, narrow_power_table), FIELD(Step, factors),
    FIELD(Step, narrow_factors), FIELD(Step, done), FIELD(Step, claimed), FIELD(Step, p), FIELD(Step, limit), FIELD(Step, bound), FIELD(Step, band),
    FIELD(Step, threads), FIELD(Step, factors_first), FIELD(Step, has_float64), FIELD(Step, largest),
    STRUCTURE(Condensed), FIELD(Condensed, source), FIELD(Condensed, dtype), FIELD(Condensed, width), FIELD(Condensed, run),
    FIELD(Condensed, inner), FIELD(Condensed, data), FIELD(Condensed, row_factor), FIELD(Condensed, row_place),
    FIELD(Condensed, column_place),
    STRUCTURE(Stage), FIELD(Stage, variables), FIELD(Stage, matrices), FIELD(Stage, tiles),
    STRUCTURE(Cycles), FIELD(Cycles, step), FIELD(Cycles, matrices), FIELD(Cycles, condensed), FIELD(Cycles, tiles),
    FIELD(Cycles, links), FIELD(Cycles, factor_links), FIELD(Cycles, powers), FIELD(Cycles, stages),
    FIELD(Cycles, stage_variables), FIELD(Cycles, stage_matrices), FIELD(Cycles, stage_tiles), FIELD(Cycles, link_ends),
    FIELD(Cycles, factor_link_ends), FIELD(Cycles, stage_count), FIELD(Cycles, matrix_count),
    FIELD(Cycles, tile_count), FIELD(Cycles, link_count), FIELD(Cycles, factor_link_count), FIELD(Cycles, power_count),
    FIELD(Cycles, count), FIELD(Cycles, work), FIELD(Cycles, power_table), FIELD(Cycles, totals), FIELD(Cycles, factors),
    FIELD(Cycles, claimed),
    STRUCTURE(ProductTable), FIELD(ProductTable, data), FIELD(ProductTable, rows), FIELD(ProductTable, width),
    FIELD(ProductTable, stride), FIELD(ProductTable, dtype), FIELD(ProductTable, is_power), FIELD(ProductTable, place),
    FIELD(ProductTable, first_tile), FIELD(ProductTable, last_tile),
    STRUCTURE(ProductTile), FIELD(ProductTile, table), FIELD(ProductTile, row), FIELD(ProductTile, rows), FIELD(ProductTile, part),
};

#undef STRUCTURE
#undef FIELD

}  // namespace
