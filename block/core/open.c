/* SPDX-License-Identifier: MIT */
/*
 * Opening: from BlockdevOptions to a node with its children.
 *
 * Children are opened by the driver's open function, one by one, through node_open_child(): either
 * found by name, or described inline and opened here in turn. A failure anywhere closes
 * everything that was opened on the way.
 */
#include "core-internal.h"
#include "util/error.h"

#define DRIVERS_MAX 64

static const BlockDriver *drivers[DRIVERS_MAX];
static size_t n_drivers;

void driver_register(const BlockDriver *driver)
{
    if (driver_find(driver->name) == driver) {
        return;
    }
    g_assert(n_drivers < DRIVERS_MAX && !driver_find(driver->name));
    drivers[n_drivers++] = driver;
}

const BlockDriver *driver_find(const char *name)
{
    for (size_t i = 0; i < n_drivers; i++) {
        if (strcmp(drivers[i]->name, name) == 0) {
            return drivers[i];
        }
    }
    return NULL;
}

/* The node that an inline description belongs to, and as what. */
typedef struct OpenContext {
    BlockNode *parent; /* or NULL */
    ChildRole role;
} OpenContext;

static const BlockDriver *find_driver(const BlockdevOptions *options, GError **error)
{
    const char *name = BlockdevDriver_str(options->driver);
    const BlockDriver *driver = driver_find(name);

    if (!driver) {
        merino_error(error, "Unknown driver '%s'", name);
    }
    return driver;
}

static bool resolve(const BlockdevOptions *options, const OpenContext *context, CommonOptions *ret,
                    GError **error)
{
    CommonOptions parent;

    if (!context->parent) {
        return common_options_resolve(options, NULL, CHILD_OTHER, ret, error);
    }
    common_options_of(context->parent, &parent);
    return common_options_resolve(options, &parent, context->role, ret, error);
}

static BlockNode *open_node(const BlockdevOptions *options, const OpenContext *context,
                            GError **error)
{
    const BlockDriver *driver = find_driver(options, error);
    CommonOptions common;
    BlockNode *node;

    if (!driver || (options->node_name && !node_check_name(options->node_name, error)) ||
        !resolve(options, context, &common, error)) {
        return NULL;
    }
    node = node_new(driver, options->node_name);
    common_options_apply(node, &common);
    node->inherits_from = context->parent;
    node->options = options_keep(options);
    if (!driver->open(node, options, error)) {
        node_destroy(node);
        return NULL;
    }
    node->open = true;
    node_refresh(&node, 1);
    if (!node_refresh_perms(node, NULL, error) || !node_register(node, error)) {
        node_destroy(node);
        return NULL;
    }
    return node;
}

BlockNode *node_open(const BlockdevOptions *options, GError **error)
{
    return open_node(options, &(OpenContext){ 0 }, error);
}

static BlockNode *open_reference(const char *node_name, GError **error)
{
    BlockNode *node = node_find(node_name);

    if (!node) {
        merino_error(error, "Cannot find device='%s' nor node-name='%s'", node_name, node_name);
        return NULL;
    }
    return node_ref(node);
}

BlockChild *node_open_child(BlockNode *parent, const BlockdevRef *ref, const char *name,
                            ChildRole role, GError **error)
{
    OpenContext context = { parent, role };
    BlockChild *child;
    BlockNode *node;

    if (ref->type == BLOCKDEV_REF_TYPE_REFERENCE) {
        node = open_reference(ref->u.reference, error);
    } else {
        node = open_node(ref->u.definition, &context, error);
    }
    if (!node) {
        return NULL;
    }
    child = node_attach_child(parent, node, name, role, error);
    node_unref(node);
    return child;
}
