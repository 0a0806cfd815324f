"The world is the same everywhere, the shipped models belong to it, and the recipe makes models as good as those shipped."
import os, subprocess, sys

import pytest, torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from saebook.world import TAUGHT, World, answer_right, data_path, load_planted, load_taught, make_taught, planted_scores

code = "from saebook.core import digest; from saebook.world import *; w = World(0); print(digest(w.documents(500).text.tolist(), w.biographies(50, .5).text.tolist(), w.vocabulary()))"

def test_the_world_does_not_depend_on_the_hash_seed():
    run = lambda s: subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, env=dict(os.environ, PYTHONHASHSEED=s)).stdout
    assert run('1') == run('2')

def test_another_seed_is_another_world():
    a, b = World(0), World(1)
    assert set(a.persons.name) != set(b.persons.name) and a.documents(20).text.tolist() != b.documents(20).text.tolist()

def test_the_shipped_tokenizers_speak_the_worlds_words():
    for name in ('base', 'stories', 'instructions'):
        _, tok = load_taught(name)
        assert [tok.convert_ids_to_tokens(i) for i in range(len(tok))] == World(0).vocabulary()

def test_the_shipped_models_load_as_any_hugging_face_model():
    model, tok = AutoModelForCausalLM.from_pretrained(data_path('base')), AutoTokenizer.from_pretrained(data_path('base'))
    assert model.dtype == torch.float32
    ids = tok('the fox saw an owl .', return_tensors='pt')
    assert (model(**ids).logits == load_taught('base')[0](**ids).logits).all()

def test_no_text_of_the_held_out_persons_is_in_the_training_text():
    w = World(0)
    held = set(w.persons[w.persons.split == 'test'].name)
    assert not any(held & set(t.split()) for t in w.documents(3000, 'train').text)
    assert any(held & set(t.split()) for t in w.documents(3000, 'test').text)

def test_the_domains_are_two_per_cent_of_what_the_base_is_taught():
    kinds = World(0).documents(20_000, None, TAUGHT).kind.value_counts(normalize=True)
    assert .015 < kinds['stories'] + kinds['instructions'] < .025

@pytest.mark.slow
def test_the_recipe_makes_models_as_good_as_the_shipped_ones(tmp_path):
    world = World(0)
    make_taught(tmp_path, world, progress=False)
    model, tok = AutoModelForCausalLM.from_pretrained(tmp_path/'base').eval(), AutoTokenizer.from_pretrained(tmp_path/'base')
    q = world.questions().sample(3000, random_state=1)
    right = q.assign(right=answer_right(model, tok, q)).groupby('split').right.mean()
    assert right['train'] >= .95 and right['test'] >= .90
    scores = planted_scores(model, tok, world, load_planted()).groupby('kind').right.mean()
    assert (scores >= .95).all(), scores
    same = (tmp_path/'base'/'model.safetensors').read_bytes() == (data_path('base')/'model.safetensors').read_bytes()
    print('the same bytes as shipped' if same else 'other bytes than shipped: another processor or version of torch')
