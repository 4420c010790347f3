// A plugin for GCC, with which it compiles the kernels of a build that counts (emulator/counting.h): each block of code
// adds to the variables below, which are the emulator's, what it computes in floating point.
#include <array>
#include <cstring>

#include <gcc-plugin.h>
// The others need it, and those before them.
#include <plugin-version.h>
#include <backend.h>
#include <tree.h>
#include <gimple.h>
#include <cgraph.h>
#include <gimple-iterator.h>
#include <ssa.h>
#include <tree-pass.h>
#include <context.h>

int plugin_is_GPL_compatible;

namespace {

struct Counter {
  const char* name;
  tree variable = NULL_TREE;
} counters[] = {{"simt_flops"}, {"simt_issued"}, {"simt_issued64"}};
enum { kFlops, kIssued, kIssued64, kCounters };
using Counts = std::array<uint64_t, kCounters>;

const ggc_root_tab roots[] = {
    {&counters[0].variable, kCounters, sizeof(Counter), gt_ggc_mx_tree_node, gt_pch_nx_tree_node}, LAST_GGC_ROOT_TAB};

tree variable_of(Counter& counter) {
  if (counter.variable) return counter.variable;
  tree name = get_identifier(counter.name);
  tree variable = build_decl(BUILTINS_LOCATION, VAR_DECL, name, uint64_type_node);
  SET_DECL_ASSEMBLER_NAME(variable, name);
  DECL_ARTIFICIAL(variable) = DECL_IGNORED_P(variable) = DECL_EXTERNAL(variable) = 1;
  TREE_STATIC(variable) = TREE_PUBLIC(variable) = TREE_USED(variable) = TREE_ADDRESSABLE(variable) = 1;
  varpool_node::get_create(variable);
  return counter.variable = variable;
}

bool is_sum(const gimple* statement) {
  if (!is_gimple_assign(statement)) return false;
  const tree_code code = gimple_assign_rhs_code(statement);
  return code == PLUS_EXPR || code == MINUS_EXPR;
}

bool is_product(const gimple* statement) {
  return is_gimple_assign(statement) && gimple_assign_rhs_code(statement) == MULT_EXPR;
}

// Whether the number is a product that nothing else needs, so that a sum of it is one instruction with it.
bool fuses(tree number) {
  return TREE_CODE(number) == SSA_NAME && has_single_use(number) && is_product(SSA_NAME_DEF_STMT(number));
}

void count(const gimple* statement, Counts& counts) {
  tree result = gimple_get_lhs(statement);
  if (!result || !SCALAR_FLOAT_TYPE_P(TREE_TYPE(result))) return;
  uint64_t flops = 0, issued = 0;
  if (is_sum(statement)) {
    flops = issued = 1;
    if (fuses(gimple_assign_rhs1(statement)) || fuses(gimple_assign_rhs2(statement))) issued = 0;
  } else if (is_product(statement) || (is_gimple_assign(statement) && gimple_assign_rhs_code(statement) == RDIV_EXPR)) {
    flops = issued = 1;
  } else if (is_gimple_call(statement)) {
    const combined_fn function = gimple_call_combined_fn(statement);
    const bool is_fma = function == CFN_FMA || function == CFN_BUILT_IN_FMA || function == CFN_BUILT_IN_FMAF;
    issued = function != CFN_LAST;
    flops = is_fma ? 2 : issued;
  }
  counts[kFlops] += flops;
  counts[TYPE_PRECISION(TREE_TYPE(result)) == 64 ? kIssued64 : kIssued] += issued;
}

void add(basic_block block, tree variable, uint64_t amount) {
  tree before = make_ssa_name(uint64_type_node), after = make_ssa_name(uint64_type_node);
  gimple_stmt_iterator at = gsi_after_labels(block);
  gsi_insert_before(&at, gimple_build_assign(before, variable), GSI_SAME_STMT);
  gsi_insert_before(&at, gimple_build_assign(after, PLUS_EXPR, before, build_int_cst(uint64_type_node, amount)),
                    GSI_SAME_STMT);
  gsi_insert_before(&at, gimple_build_assign(variable, after), GSI_SAME_STMT);
}

const pass_data description = {GIMPLE_PASS, "count_flops",  OPTGROUP_NONE, TV_NONE, PROP_cfg | PROP_ssa, 0, 0,
                               0,           TODO_update_ssa};

struct CountFlops : gimple_opt_pass {
  CountFlops() : gimple_opt_pass(description, g) {}
  unsigned execute(function* compiled) override {
    basic_block block;
    FOR_EACH_BB_FN(block, compiled) {
      Counts counts{};
      for (gimple_stmt_iterator at = gsi_start_bb(block); !gsi_end_p(at); gsi_next(&at)) count(gsi_stmt(at), counts);
      for (size_t i = 0; i < kCounters; ++i)
        if (counts[i] > 0) add(block, variable_of(counters[i]), counts[i]);
    }
    return 0;
  }
};

}  // namespace

int plugin_init(plugin_name_args* args, plugin_gcc_version* version) {
  // Debian's headers come from another build of the same version.
  if (std::strcmp(version->basever, gcc_version.basever) != 0) return 1;
  // After the pass by which accesses are counted, so that it does not count the counters.
  register_pass_info pass = {new CountFlops, "tsan", 1, PASS_POS_INSERT_AFTER};
  register_callback(args->base_name, PLUGIN_PASS_MANAGER_SETUP, nullptr, &pass);
  register_callback(args->base_name, PLUGIN_REGISTER_GGC_ROOTS, nullptr, const_cast<ggc_root_tab*>(roots));
  return 0;
}
