// Inside llm/: the chat templates as data.
#ifndef LV_LLM_TEMPLATE_H
#define LV_LLM_TEMPLATE_H

#include "llm/tokenizer.h"

typedef enum lv_template_id {
    LV_TEMPLATE_VICUNA_V1,
    LV_TEMPLATE_LLAVA_V1,
    LV_TEMPLATE_LLAVA_HF,
    LV_TEMPLATE_MISTRAL_INSTRUCT,
    LV_TEMPLATE_CHATML_DIRECT,
    LV_TEMPLATE_LLAVA_LLAMA_2,
    LV_TEMPLATE_PLAIN,
    LV_N_TEMPLATES
} lv_template_id;

#endif
