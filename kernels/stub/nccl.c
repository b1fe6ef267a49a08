// Stands in for the collectives of CUDA where NCCL is absent.
#include "kernels/group/group.h"

lv_status lv_nccl_collectives(const lv_group *group, lv_collectives **out) {
    (void)group;
    *out = NULL;
    return lv_fail(LV_EUNSUPPORTED, "tensor parallelism over GPUs: built without NCCL");
}
