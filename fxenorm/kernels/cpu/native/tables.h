// What Python hands over: addresses, shapes and ids; see tables.py.
#pragma once
#include <cstdint>

using i64 = std::int64_t;
constexpr i64 SHARES = 65536;

struct ReduceMatrix {
    const void *data;
    i64 rows, width, dtype;
    const double *row_factor;        // (rows,) or null: 1
    i64 row_sums, column_sums;       // places in `work`; -1: not wanted
    i64 column_count;                // segments * width / run
    i64 first_tile, last_tile;
    i64 run;                         // columns side by side that carry the same: each tile adds their sums up
};
struct ReduceTile {
    i64 matrix, row, rows, column, columns, segment, row_part, column_part, share;
};
struct Link {                        // where sums go: out[slots[i]] += weight * work[source + i]
    i64 source, count;
    const std::int32_t *slots;
    double weight;
};
struct ScaleMatrix {
    void *data;
    i64 width, dtype, row_factor, column_factor;   // places in `factors`; -1: 1
    double smallest, largest;        // what its products may be
};
struct ScaleTile {                   // share: where in the tensor it lies, from 0 to SHARES
    i64 matrix, row, rows, column, columns, segment, share;
};
struct FactorLink {                  // factors[destination + i] (*)= powers[exponent][ids[i]]
    i64 destination, count;
    const std::int32_t *ids;
    i64 exponent, first;
};

// One cycle goes through the tensors in phases. Each scales what the phase before has settled, reads some more tensors, and
// settles the variables that nothing unread carries. Begin and end of each range.
struct Phase {
    i64 scale_tiles[2], reduce_tiles[2], matrices[2], links[2], variables[2], factor_links[2];
};
struct Step {
    const ReduceMatrix *matrices;
    const ReduceTile *reduce_tiles;
    const Link *links;
    const ScaleMatrix *targets;
    const ScaleTile *scale_tiles;
    const FactorLink *factor_links;
    const Phase *phases;
    i64 phase_count;
    const i64 *variables;            // in the order in which they are settled
    const std::uint8_t *held, *octaves;   // by variable: whether it stays; whether it moves by powers of two only
    const double *exponents;         // by variable: its factor is (N / P) to this power
    const std::int32_t *roots;       // by variable: the exponent is 1 / 2^roots; -1: it is not
    const i64 *powers;               // the integer powers of factors that are needed
    i64 power_count, variable_count, sum_count, scale_tile_count, reduce_tile_count;
    double *work, *sums, *power_table;   // power_table: (power_count, variable_count + 1), 1 in its last column
    float *narrow_power_table;       // the same
    double *factors;                 // for targets of float64, and to undo
    float *narrow_factors;           // for the others
    i64 *done;                       // by scale tile
    std::uint8_t *claimed;           // by scale tile, then by reduce tile: whether a thread has taken it
    double p, limit, bound, band;    // the largest factor: what it is cut to, and where the step gives up; smaller ones than `band` are 1
    i64 threads, factors_first, has_float64;   // nothing is written before all factors are known; there are targets of float64
    double *largest;                 // set to the largest factor, or inverse of one
};

// Several cycles: kernels of convolutions are summed once, and all cycles run on those sums and on the weights that have no kernel.
struct Condensed {
    const void *source;              // the weights
    i64 dtype, width, run, inner;    // of the weights' table; `run` entries that carry the same; inner: they lie side by side
    float *data;                     // (rows, width / run) sums of |w|^p; null: the weights are read themselves
    const double *row_factor;        // (rows,) or null: 1
    i64 row_place, column_place;     // in `factors`: what the entries are multiplied by; -1: 1
};
struct Stage {                       // some variables, which move together, and the matrices that carry one of them
    i64 variables[2], matrices[2], tiles[2];   // begin and end of each in the lists of a cycle
};
struct Cycles {                      // each goes through all stages: one for all variables (Jacobi), or one a group (Gauss-Seidel)
    const Step *step;                // what is scaled in the end; its sums, power table and factors are written then
    const ReduceMatrix *matrices;
    const Condensed *condensed;      // by matrix
    const ReduceTile *tiles;
    const Link *links;
    const FactorLink *factor_links;
    const double *powers;            // by row of the power table: not always integers
    const Stage *stages;
    const i64 *stage_variables, *stage_matrices, *stage_tiles;
    const i64 *link_ends, *factor_link_ends;   // by matrix
    i64 stage_count;
    i64 matrix_count, tile_count, link_count, factor_link_count, power_count, count;
    double *work, *power_table, *totals;
    float *factors;
    std::uint8_t *claimed;
};

// Tables of |w|^p that are multiplied by a vector from either side. Both vectors lie in one array, and so do both products: of each
// table first one number for each of its rows, and then one for each of its columns.
struct ProductTable {
    const void *data;
    i64 rows, width, stride, dtype;
    i64 is_power, place;             // whether entries are powers already; where its rows' numbers begin
    i64 first_tile, last_tile;
};
struct ProductTile {                 // part: the place of its columns' sums in `work`
    i64 table, row, rows, part;
};
