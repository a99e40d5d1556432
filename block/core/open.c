/* SPDX-License-Identifier: MIT */
/*
 * Opening: from BlockdevOptions to a node with its children.
 *
 * Children are opened by the driver's open function, one by one, through node_open_child(): either
 * found by name, or described inline and opened here in turn. A failure anywhere closes
 * everything that was opened on the way. A node is listed when its `file` child is there, or else
 * when it is open: queries show nodes in the order in which QEMU lists them.
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

const char *driver_probe(const uint8_t *head, size_t bytes)
{
    for (size_t i = 0; i < n_drivers; i++) {
        if (drivers[i]->probe && drivers[i]->probe(head, bytes)) {
            return drivers[i]->name;
        }
    }
    return "raw";
}

/* The node that an inline description belongs to, and as what. */
typedef struct OpenContext {
    BlockNode *parent; /* or NULL */
    ChildRole role;
    bool for_check;
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

static BlockNode *find_reference(const char *node_name, GError **error)
{
    BlockNode *node = node_find(node_name);

    if (!node) {
        merino_error(error, "Cannot find device='%s' nor node-name='%s'", node_name, node_name);
    }
    return node;
}

/* What can be said against a description without touching storage, in QEMU's order: the `file`
 * child comes first. */
static bool check_options(const BlockdevOptions *options, const CommonOptions *common,
                          GError **error)
{
    const BlockdevRef *file = options_child(options, "file");
    CommonOptions inner;

    if (file && file->type == BLOCKDEV_REF_TYPE_DEFINITION) {
        common_options_resolve(file->u.definition, common, CHILD_OTHER, &inner);
        if (!check_options(file->u.definition, &inner, error)) {
            return false;
        }
    } else if (file && !find_reference(file->u.reference, error)) {
        return false;
    }
    return common_options_check(common, error) &&
           (!options->node_name || node_check_name(options->node_name, error));
}

static void resolve(const BlockdevOptions *options, const OpenContext *context, CommonOptions *ret)
{
    CommonOptions parent;

    if (context->parent) {
        common_options_of(context->parent, &parent);
    }
    common_options_resolve(options, context->parent ? &parent : NULL, context->role, ret);
}

static bool list_once(BlockNode *node, GError **error)
{
    return node_is_listed(node) || node_register(node, error);
}

/* What a driver reads while it opens, the main thread waits for, and everybody with it: that is not
 * the time for limits. */
static bool open_in_a_hurry(BlockNode *node, const BlockdevOptions *options, GError **error)
{
    HurrySection *hurry = hurry_begin_node(node);
    bool ok = node->driver->open(node, options, error);

    hurry_end(hurry);
    return ok;
}

static BlockNode *open_node(const BlockdevOptions *options, const OpenContext *context,
                            GError **error)
{
    const BlockDriver *driver = find_driver(options, error);
    CommonOptions common;
    BlockNode *node;

    resolve(options, context, &common);
    if (!driver || !check_options(options, &common, error)) {
        return NULL;
    }
    node = node_new(driver, options->node_name);
    common_options_apply(node, &common);
    node->inherits_from = context->parent;
    node->for_check = context->for_check;
    node->options = options_keep(options);
    if (!open_in_a_hurry(node, options, error)) {
        node_destroy(node);
        return NULL;
    }
    node->open = true;
    hurry_node_opened(node);
    node_refresh(&node, 1);
    if (!node_refresh_perms(node, NULL, error) || !list_once(node, error)) {
        node_destroy(node);
        return NULL;
    }
    return node;
}

BlockNode *node_open(const BlockdevOptions *options, GError **error)
{
    return open_node(options, &(OpenContext){ 0 }, error);
}

BlockNode *node_open_for_check(const BlockdevOptions *options, GError **error)
{
    return open_node(options, &(OpenContext){ .for_check = true }, error);
}

BlockNode *node_open_for(BlockNode *parent, const BlockdevRef *ref, ChildRole role, GError **error)
{
    OpenContext context = { .parent = parent, .role = role };
    BlockNode *node;

    if (ref->type == BLOCKDEV_REF_TYPE_DEFINITION) {
        return open_node(ref->u.definition, &context, error);
    }
    node = find_reference(ref->u.reference, error);
    return node ? node_ref(node) : NULL;
}

BlockNode *node_open_ref(const BlockdevRef *ref, GError **error)
{
    return node_open_for(NULL, ref, CHILD_OTHER, error);
}

BlockChild *node_open_child(BlockNode *parent, const BlockdevRef *ref, const char *name,
                            ChildRole role, GError **error)
{
    BlockNode *node = node_open_for(parent, ref, role, error);
    BlockChild *child;

    if (!node) {
        return NULL;
    }
    child = node_attach_child(parent, node, name, role, error);
    node_unref(node);
    if (child && child == parent->file && !list_once(parent, error)) {
        node_detach_child(child);
        return NULL;
    }
    return child;
}
