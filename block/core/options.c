/* SPDX-License-Identifier: MIT */
/*
 * The options that every node has: read-only, auto-read-only, cache, discard, force-share and
 * detect-zeroes.
 *
 * A node that is described inline, as the child of another, takes over what it is not told:
 * read-only, auto-read-only, cache and force-share from its parent (a backing file is always
 * read-only), while discards are passed on, because the parent already decided about them. A filter
 * passes them on as well, unless it is told not to: putting one over a live disk must not make the
 * guest's discards go nowhere.
 */
#include "core-internal.h"
#include "qapi/codec.h"
#include "util/error.h"

#include <jansson.h>

static void defaults(const CommonOptions *parent, ChildRole role, CommonOptions *ret)
{
    *ret = (CommonOptions){ .detect_zeroes = BLOCKDEV_DETECT_ZEROES_OPTIONS_OFF };
    if (!parent) {
        return;
    }
    ret->cache_direct = parent->cache_direct;
    ret->cache_no_flush = parent->cache_no_flush;
    ret->force_share = parent->force_share;
    ret->discard_asked = true;
    if (role == CHILD_COW) {
        ret->read_only = true;
    } else {
        ret->read_only = parent->read_only;
        ret->auto_read_only = parent->auto_read_only;
    }
}

static bool is_filter(const BlockdevOptions *options)
{
    const BlockDriver *driver = driver_find(BlockdevDriver_str(options->driver));

    return driver && driver->is_filter;
}

void common_options_resolve(const BlockdevOptions *options, const CommonOptions *parent,
                            ChildRole role, CommonOptions *ret)
{
    defaults(parent, role, ret);
    if (options->has_read_only) {
        ret->read_only = options->read_only;
    }
    if (options->has_auto_read_only) {
        ret->auto_read_only = options->auto_read_only;
    }
    if (options->has_force_share) {
        ret->force_share = options->force_share;
    }
    if (options->has_discard) {
        ret->discard_asked = options->discard == BLOCKDEV_DISCARD_OPTIONS_UNMAP;
    }
    ret->discard_unmap = ret->discard_asked || (!options->has_discard && is_filter(options));
    if (options->has_detect_zeroes) {
        ret->detect_zeroes = options->detect_zeroes;
    }
    if (options->cache && options->cache->has_direct) {
        ret->cache_direct = options->cache->direct;
    }
    if (options->cache && options->cache->has_no_flush) {
        ret->cache_no_flush = options->cache->no_flush;
    }
}

bool common_options_check_zeroes(const CommonOptions *common, GError **error)
{
    if (common->detect_zeroes == BLOCKDEV_DETECT_ZEROES_OPTIONS_UNMAP && !common->discard_asked) {
        merino_error(error, "setting detect-zeroes to unmap is not allowed without setting discard "
                            "operation to unmap");
        return false;
    }
    return true;
}

bool common_options_check(const CommonOptions *common, GError **error)
{
    if (common->force_share && !common->read_only) {
        merino_error(error, "force-share=on can only be used with read-only images");
        return false;
    }
    return common_options_check_zeroes(common, error);
}

void common_options_of(const BlockNode *node, CommonOptions *ret)
{
    *ret = (CommonOptions){
        .read_only = node->read_only,
        .auto_read_only = node->auto_read_only,
        .force_share = node->force_share,
        .discard_unmap = node->discard_unmap,
        .cache_direct = node->cache_direct,
        .cache_no_flush = node->cache_no_flush,
        .detect_zeroes = node->detect_zeroes,
    };
}

void common_options_apply(BlockNode *node, const CommonOptions *common)
{
    node->read_only = common->read_only;
    node->auto_read_only = common->auto_read_only;
    node->force_share = common->force_share;
    node->discard_unmap = common->discard_unmap;
    node->cache_direct = common->cache_direct;
    node->cache_no_flush = common->cache_no_flush;
    node->detect_zeroes = common->detect_zeroes;
}

/* --- the driver's own --- */

void option_iter_init(OptionIter *iter, const BlockdevOptions *options)
{
    const QapiType *type = &qapi_type_BlockdevOptions;

    *iter = (OptionIter){
        .branch = type->as.object.branches[options->driver],
        .base = (const char *)options + type->as.object.u_offset,
    };
}

/* A BlockdevRefOrNull begins like a BlockdevRef. */
G_STATIC_ASSERT(offsetof(BlockdevRefOrNull, type) == offsetof(BlockdevRef, type) &&
                offsetof(BlockdevRefOrNull, u) == offsetof(BlockdevRef, u) &&
                (int)BLOCKDEV_REF_OR_NULL_TYPE_DEFINITION == (int)BLOCKDEV_REF_TYPE_DEFINITION &&
                (int)BLOCKDEV_REF_OR_NULL_TYPE_REFERENCE == (int)BLOCKDEV_REF_TYPE_REFERENCE);

static void take_child(OptionIter *iter)
{
    const BlockdevRefOrNull *or_null;

    iter->is_child = iter->member->type == &qapi_type_BlockdevRef ||
                     iter->member->type == &qapi_type_BlockdevRefOrNull;
    iter->child = iter->is_child ? *(BlockdevRef *const *)iter->slot : NULL;
    or_null = (const BlockdevRefOrNull *)iter->child;
    iter->child_is_null = or_null && or_null->type == BLOCKDEV_REF_OR_NULL_TYPE_NULL;
    if (iter->child_is_null) {
        iter->child = NULL;
    }
}

bool option_iter_next(OptionIter *iter)
{
    if (!iter->branch || iter->next == iter->branch->as.object.n_members) {
        return false;
    }
    iter->member = &iter->branch->as.object.members[iter->next++];
    iter->slot = iter->base + iter->member->offset;
    take_child(iter);
    return true;
}

json_t *option_value(const OptionIter *iter)
{
    const QapiMember *member = iter->member;
    bool present = true;

    if (qapi_type_is_pointer(member->type)) {
        present = *(void *const *)iter->slot != NULL;
    } else if (member->optional) {
        present = *(const bool *)(iter->base + member->has_offset);
    }
    return present ? qapi_encode_slot(member->type, iter->slot) : NULL;
}

static void add_flat(json_t *object, const char *name, json_t *value)
{
    const char *key;
    json_t *item;
    size_t i;

    json_object_foreach(value, key, item)
    {
        g_autofree char *path = g_strdup_printf("%s.%s", name, key);

        add_flat(object, path, item);
    }
    json_array_foreach(value, i, item)
    {
        g_autofree char *path = g_strdup_printf("%s.%zu", name, i);

        add_flat(object, path, item);
    }
    if (!json_is_object(value) && !json_is_array(value)) {
        json_object_set(object, name, value);
    }
}

void option_add_flat(json_t *object, const OptionIter *iter)
{
    json_t *value = option_value(iter);

    if (value) {
        add_flat(object, iter->member->name, value);
        json_decref(value);
    }
}

const BlockdevRef *options_child(const BlockdevOptions *options, const char *name)
{
    OptionIter iter;

    option_iter_init(&iter, options);
    while (option_iter_next(&iter)) {
        if (iter.is_child && strcmp(iter.member->name, name) == 0) {
            return iter.child;
        }
    }
    return NULL;
}

/* The iterator at the member `backing`. */
static bool find_backing(OptionIter *iter, const BlockdevOptions *options)
{
    option_iter_init(iter, options);
    while (option_iter_next(iter)) {
        if (iter->member->type == &qapi_type_BlockdevRefOrNull &&
            strcmp(iter->member->name, "backing") == 0) {
            return true;
        }
    }
    return false;
}

bool options_have_backing(const BlockdevOptions *options)
{
    OptionIter iter;

    return find_backing(&iter, options);
}

const BlockdevRefOrNull *options_backing(const BlockdevOptions *options)
{
    OptionIter iter;

    return find_backing(&iter, options) ? *(BlockdevRefOrNull *const *)iter.slot : NULL;
}

BlockdevOptions *options_keep(const BlockdevOptions *options)
{
    BlockdevOptions shallow = *options;
    OptionIter iter;

    option_iter_init(&iter, &shallow);
    while (option_iter_next(&iter)) {
        if (iter.is_child) {
            *(BlockdevRef **)iter.slot = NULL;
        }
    }
    return blockdev_options_clone(&shallow);
}
