// The conversation templates of the original LLaVA code (llava/conversation.py), and the chat
// template of llava-hf 1.5.
//
// What the template itself writes may hold tokens that steer the model; what a turn's text says is
// quoted: "</s>" or "<image>" in it stay words, so that a user cannot end a turn or forge another.
// Ordinary text gets the reference's ids.
#include "llm/template.h"

#include <string.h>

#include "llm/utf8.h"

#define MAX_PROMPT_BYTES ((size_t)4 << 20)
#define IMAGE_MARK "<image>"

typedef enum style { STYLE_VICUNA, STYLE_LLAMA_2, STYLE_CHATML, STYLE_PLAIN } style;

typedef struct chat_template {
    const char *name;
    style style;
    const char *system; // where the conversation brings none
    // What follows an answer: a token where the vocabulary has one; " " in llava-hf's.
    const char *answer_end;
    const char *turn_start; // LLAMA_2: a token in front of each question but the first
    const char *stops[2];
} chat_template;

static const chat_template templates[LV_N_TEMPLATES] = {
    [LV_TEMPLATE_VICUNA_V1] = {"vicuna_v1",
                               STYLE_VICUNA,
                               "A chat between a curious user and an artificial intelligence "
                               "assistant. The assistant gives helpful, detailed, and polite "
                               "answers to the user's questions.",
                               "</s>",
                               NULL,
                               {NULL}},
    [LV_TEMPLATE_LLAVA_V1] = {"llava_v1",
                              STYLE_VICUNA,
                              "A chat between a curious human and an artificial intelligence "
                              "assistant. The assistant gives helpful, detailed, and polite "
                              "answers to the human's questions.",
                              "</s>",
                              NULL,
                              {NULL}},
    [LV_TEMPLATE_LLAVA_HF] = {"llava_hf", STYLE_VICUNA, "", " ", NULL, {NULL}},
    [LV_TEMPLATE_MISTRAL_INSTRUCT] = {"mistral_instruct", STYLE_LLAMA_2, "", "</s>", NULL, {NULL}},
    [LV_TEMPLATE_CHATML_DIRECT] = {"chatml_direct",
                                   STYLE_CHATML,
                                   "Answer the questions.",
                                   "<|im_end|>",
                                   "<|im_start|>",
                                   {"<|im_end|>"}},
    [LV_TEMPLATE_LLAVA_LLAMA_2] =
        {"llava_llama_2",
         STYLE_LLAMA_2,
         "You are a helpful language and vision assistant. You are able "
         "to understand the visual content that the user provides, and "
         "assist the user with a variety of tasks using natural language.",
         "</s>",
         "<s>",
         {NULL}},
    [LV_TEMPLATE_PLAIN] = {"plain", STYLE_PLAIN, "", "\n", NULL, {"\n"}},
};

const char *const *lv_template_names(void) {
    static const char *names[LV_N_TEMPLATES + 1];
    for (int i = 0; i < LV_N_TEMPLATES; i++) {
        names[i] = templates[i].name;
    }
    return names;
}

const char *const *lv_template_stops(int template_id) {
    static const char *const none[] = {NULL};
    return template_id >= 0 && template_id < LV_N_TEMPLATES ? templates[template_id].stops : none;
}

// --- the prompt under construction --------------------------------------------------------------

typedef struct prompt {
    const lv_tokenizer *tokenizer;
    const chat_template *template;
    lv_buffer stretch; // text since the last token or picture
    bool first;        // nothing but pictures precedes the stretch
    lv_ids *out;
} prompt;

static lv_status close_stretch(prompt *p) {
    lv_status status = LV_OK;
    if (p->stretch.n_bytes > 0) {
        status = lv_tokenize_quoted(p->tokenizer, (const char *)p->stretch.data, p->stretch.n_bytes,
                                    p->first, p->out);
    }
    p->stretch.n_bytes = 0;
    p->first = false;
    return status;
}

static lv_status add_bytes(prompt *p, const char *text, size_t n) {
    return lv_utf8_append(&p->stretch, text, n);
}

static lv_status add(prompt *p, const char *text) {
    return add_bytes(p, text, strlen(text));
}

// A token of the template's own; words where the vocabulary has no such token.
static lv_status add_special(prompt *p, const char *text) {
    int32_t id = lv_tokenizer_special(p->tokenizer, text);
    if (id < 0 || strcmp(text, " ") == 0) {
        return add(p, text);
    }
    LV_TRY(close_stretch(p));
    return lv_ids_push(p->out, id);
}

// Each side of a picture is tokenised as a text of its own.
static lv_status add_image(prompt *p) {
    LV_TRY(close_stretch(p));
    p->first = true;
    return lv_ids_push(p->out, LV_IMAGE_TOKEN);
}

static int count_marks(const char *text) {
    int n = 0;
    for (const char *mark = text; (mark = strstr(mark, IMAGE_MARK)); mark += strlen(IMAGE_MARK)) {
        n++;
    }
    return n;
}

// The turn's words with its pictures: those without a mark in front, as "<image>\n"; marks beyond
// the pictures stay words.
static lv_status add_turn(prompt *p, const lv_turn *turn) {
    const char *text = turn->text ? turn->text : "";
    int n_marked = count_marks(text);
    if (n_marked > turn->n_images) {
        n_marked = turn->n_images;
    }
    for (int i = n_marked; i < turn->n_images; i++) {
        LV_TRY(add_image(p));
        LV_TRY(add(p, "\n"));
    }
    for (int i = 0; i < n_marked; i++) {
        const char *mark = strstr(text, IMAGE_MARK);
        LV_TRY(add_bytes(p, text, (size_t)(mark - text)));
        LV_TRY(add_image(p));
        text = mark + strlen(IMAGE_MARK);
    }
    return add(p, text);
}

// --- styles -------------------------------------------------------------------------------------

static bool is_role(const lv_turn *turn, const char *role) {
    return strcmp(turn->role, role) == 0;
}

// "{system} USER: {q} ASSISTANT: {a}</s>USER: {q} ASSISTANT:"
static lv_status build_vicuna(prompt *p, const char *system, const lv_turn *turns, int n) {
    LV_TRY(add(p, system));
    LV_TRY(add(p, *system ? " " : ""));
    for (int i = 0; i < n; i++) {
        if (is_role(&turns[i], "user")) {
            LV_TRY(add(p, "USER: "));
            LV_TRY(add_turn(p, &turns[i]));
            LV_TRY(add(p, " "));
        } else if (is_role(&turns[i], "assistant")) {
            LV_TRY(add(p, "ASSISTANT: "));
            LV_TRY(add_turn(p, &turns[i]));
            LV_TRY(add_special(p, p->template->answer_end));
        }
    }
    return add(p, "ASSISTANT:");
}

// "[INST] <<SYS>>\n{system}\n<</SYS>>\n\n{q} [/INST] {a} </s><s>[INST] {q} [/INST]"
static lv_status build_llama_2(prompt *p, const char *system, const lv_turn *turns, int n) {
    bool opened = false;
    for (int i = 0; i < n; i++) {
        if (is_role(&turns[i], "user")) {
            if (opened && p->template->turn_start) {
                LV_TRY(add_special(p, p->template->turn_start));
            }
            LV_TRY(add(p, "[INST] "));
            if (!opened && *system) {
                LV_TRY(add(p, "<<SYS>>\n"));
                LV_TRY(add(p, system));
                LV_TRY(add(p, "\n<</SYS>>\n\n"));
            }
            LV_TRY(add_turn(p, &turns[i]));
            LV_TRY(add(p, " [/INST]"));
            opened = true;
        } else if (is_role(&turns[i], "assistant")) {
            LV_TRY(add(p, " "));
            LV_TRY(add_turn(p, &turns[i]));
            LV_TRY(add(p, " "));
            LV_TRY(add_special(p, p->template->answer_end));
        }
    }
    return LV_OK;
}

static lv_status add_chatml(prompt *p, const char *role, const lv_turn *turn) {
    LV_TRY(add_special(p, p->template->turn_start));
    LV_TRY(add(p, role));
    LV_TRY(add(p, "\n"));
    if (!turn) {
        return LV_OK;
    }
    LV_TRY(add_turn(p, turn));
    return add_special(p, p->template->answer_end);
}

// "<|im_start|>system\n{system}<|im_end|><|im_start|>user\n{q}<|im_end|><|im_start|>assistant\n"
static lv_status build_chatml(prompt *p, const char *system, const lv_turn *turns, int n) {
    LV_TRY(add_chatml(p, "system", &(lv_turn){.text = system}));
    for (int i = 0; i < n; i++) {
        if (!is_role(&turns[i], "system")) {
            LV_TRY(add_chatml(p, turns[i].role, &turns[i]));
        }
    }
    return add_chatml(p, "assistant", NULL);
}

// "{q}\n{a}\n{q}\n"
static lv_status build_plain(prompt *p, const char *system, const lv_turn *turns, int n) {
    LV_TRY(add(p, system));
    for (int i = 0; i < n; i++) {
        if (!is_role(&turns[i], "system")) {
            LV_TRY(add_turn(p, &turns[i]));
            LV_TRY(add(p, p->template->answer_end));
        }
    }
    return LV_OK;
}

static lv_status build(prompt *p, const char *system, const lv_turn *turns, int n) {
    switch (p->template->style) {
    case STYLE_VICUNA:
        return build_vicuna(p, system, turns, n);
    case STYLE_LLAMA_2:
        return build_llama_2(p, system, turns, n);
    case STYLE_CHATML:
        return build_chatml(p, system, turns, n);
    case STYLE_PLAIN:
        return build_plain(p, system, turns, n);
    }
    return lv_fail(LV_EINVAL, "template style %d", (int)p->template->style);
}

static lv_status check_turns(const lv_turn *turns, int n_turns) {
    for (int i = 0; i < n_turns; i++) {
        const char *role = turns[i].role;
        bool user = role && is_role(&turns[i], "user");
        if (!user &&
            (!role || (!is_role(&turns[i], "system") && !is_role(&turns[i], "assistant")))) {
            return lv_fail(LV_EINVAL, "turn %d: role \"%s\"; expected system, user or assistant", i,
                           role ? role : "");
        }
        if (turns[i].n_images < 0 || (turns[i].n_images > 0 && !user)) {
            return lv_fail(LV_EINVAL, "turn %d: %d pictures in a %s turn", i, turns[i].n_images,
                           role);
        }
    }
    if (n_turns < 1 || !is_role(&turns[n_turns - 1], "user")) {
        return lv_fail(LV_EINVAL, "the last turn must be the user's");
    }
    return LV_OK;
}

lv_status lv_prompt_build(const lv_tokenizer *tokenizer, int template_id, const lv_turn *turns,
                          int n_turns, lv_ids *out) {
    if (template_id < 0 || template_id >= LV_N_TEMPLATES) {
        return lv_fail(LV_EINVAL, "no template %d", template_id);
    }
    LV_TRY(check_turns(turns, n_turns));
    prompt p = {.tokenizer = tokenizer,
                .template = &templates[template_id],
                .stretch = {.max_bytes = MAX_PROMPT_BYTES},
                .first = true,
                .out = out};
    const char *system = p.template->system;
    for (int i = n_turns - 1; i >= 0; i--) {
        if (is_role(&turns[i], "system")) {
            system = turns[i].text ? turns[i].text : "";
        }
    }
    int n_before = out->n;
    lv_status status = LV_OK;
    if (tokenizer->adds_bos && tokenizer->bos_id >= 0) {
        LV_TRY_DONE(lv_ids_push(out, tokenizer->bos_id));
    }
    LV_TRY_DONE(build(&p, system, turns, n_turns));
    status = close_stretch(&p);
done:
    lv_buffer_free(&p.stretch);
    if (status != LV_OK) {
        out->n = n_before;
    }
    return status;
}
