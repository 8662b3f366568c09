"""Our conversation templates in Jinja, for `apply_chat_template`."""

from openqwen2vl.formats.templates import Template

# A newline parts an image from the text behind it, unless the template glues them; an image that is
# moved to the front takes its newline along.
_SAID = """{%- macro said(content, moved) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- set seen = namespace(image=false) -%}
{%- for part in content -%}
{%- if part.type in ('image', 'image_url') -%}
{%- if not moved -%}{{ '<|image_pad|>' }}{%- endif -%}
{%- set seen.image = true -%}
{%- elif part.type == 'text' -%}
{%- set parted = part.text[:1] == '\\n' -%}
{%- set glued = moved or @GLUED@ -%}
{%- if seen.image and glued and parted -%}{{ part.text[1:] }}
{%- elif seen.image and not glued and not parted -%}{{ '\\n' + part.text }}
{%- else -%}{{ part.text }}{%- endif -%}
{%- set seen.image = false -%}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""
_COUNT = """{%- set count = namespace(images=0) -%}
{%- for message in messages if message.content is not string -%}
{%- for part in message.content if part.type in ('image', 'image_url') -%}
{%- set count.images = count.images + 1 -%}
{%- endfor -%}
{%- endfor -%}
{%- set moved = count.images == 1 -%}
{%- if moved -%}{{ '<|image_pad|>\\n' }}{%- endif -%}
"""
_STAYS = "{%- set moved = false -%}\n"
_SYSTEM = """{%- if messages[0].role != 'system' -%}
{{ '<|im_start|>system\\n@SYSTEM@<|im_end|>\\n' }}
{%- endif -%}
"""
_TURNS = """{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + said(message.content, moved) + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""
# Here a user's turn opens the assistant's, so there is nothing to add for an answer.
_UNMARKED_TURNS = """{%- for message in messages -%}
{%- if message.role != 'assistant' -%}{{ '<|im_start|>' + message.role + '\\n' }}{%- endif -%}
{{ said(message.content, moved) + '<|im_end|>' }}
{{- 'assistant\\n' if message.role == 'user' else '\\n' -}}
{%- endfor -%}
"""


def chat_template(template: Template) -> str:
    """Give a template's conversations in Jinja: the same ids as ``templates.prompt_ids``.

    A message's content is a text, or a list of ``{"type": "image"}`` and
    ``{"type": "text", "text": ...}``. Texts are encoded together with what stands around them
    there, and by themselves in training, so one that begins with spaces or newlines may differ.
    """
    return "".join(
        (
            _SAID.replace("@GLUED@", "true" if template.image_glued else "false"),
            _COUNT if template.image_first else _STAYS,
            "{{- '<s>' -}}\n" if template.bos else "",
            _SYSTEM.replace("@SYSTEM@", template.system),
            _TURNS if template.assistant_mark else _UNMARKED_TURNS,
        )
    )
