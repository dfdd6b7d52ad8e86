"""What ends a negation, where doubt stands, how findings are spelt: sentences of each kind and what they say."""

import pytest
from sentences import codes_of, codes_read

SENTENCES = {
    "unlikely speaks forward or back": """
        Pneumothorax is unlikely to be present. || pneumothorax-
        The consolidation is unlikely to reflect pneumonia. || consolidation+ pneumonia-
        There is unlikely to be a fracture. || fracture-
        Findings are unlikely to represent edema. || edema-
        Pneumonia is thought unlikely. || pneumonia-
        An infectious process is felt to be unlikely. || pneumonia-
        Unlikely pneumonia. || pneumonia-
        Pneumonia seems unlikely. || pneumonia-
        The opacities are not likely to represent pneumonia. || opacity+ pneumonia-
        The appearance speaks against edema. || edema-
        Absence of fever argues against pneumonia. || pneumonia-
        The nodule is unlikely malignant. || lesion+
    """,
    "what ends a negation": """
        No pneumothorax following thoracentesis, small residual effusion. || pneumothorax- effusion+
        No pneumothorax status post right chest tube placement. || pneumothorax- device+
        No pneumothorax with the left chest tube on suction. || pneumothorax- device+
        No effusion and new left upper lobe opacity. || effusion- opacity+
        No pneumothorax, a small left effusion. || pneumothorax- effusion+
        No edema, mild cardiomegaly. || edema- heart+
        No pneumothorax, ET tube in standard position. || pneumothorax- device+
        No fracture, pacemaker leads intact. || fracture- device+
        No consolidation, effusion, pneumothorax. || consolidation- effusion- pneumothorax-
        No consolidation, effusion, small pneumothorax or edema. || consolidation- effusion- pneumothorax- edema-
        No complication after central line placement. || device+
        No pneumothorax post removal of the chest tube. || pneumothorax- device-
        Interval removal of the endotracheal tube and placement of a tracheostomy. || device+
        Removal of the Swan-Ganz catheter, IJ sheath, and nasogastric tube. || device-
        No significant interval change in the moderate right effusion. || effusion+
        No evidence of change in the pneumothorax. || pneumothorax+
        No worsening of the edema. || edema+
        No change in lines and tubes. || device+
        No large effusion or pneumothorax. || effusion- pneumothorax-
        No left effusion and no right effusion. || effusion-
        No acute, displaced fracture. || fracture-
        No pneumothorax despite multiple rib fractures. || pneumothorax- fracture+
        No edema in the setting of chronic cardiomegaly. || edema- heart+
        No pneumonia, only atelectasis. || pneumonia- atelectasis+
        No effusion, but mild edema. || effusion- edema+
    """,
    "a verb of its own ends the list before it": """
        Effusions persist, pneumothorax has resolved. || effusion+ pneumothorax-
        Atelectasis continues, the effusion has cleared. || atelectasis+ effusion-
        The effusion has increased and the pneumothorax has resolved. || effusion+ pneumothorax-
        Mild cardiomegaly is unchanged, edema is no longer seen. || heart+ edema-
        Small effusion, and pneumothorax is not seen. || effusion+ pneumothorax-
        Opacity improves, effusion is not seen. || opacity+ effusion-
        Edema and effusions have cleared. || edema- effusion-
        Atelectasis, effusion, and edema have all resolved. || atelectasis- effusion- edema-
        Consolidation has developed, edema resolved. || consolidation+ edema-
        Resolved pneumothorax. || pneumothorax-
        Pneumothorax resolved, effusion unchanged. || pneumothorax- effusion+
        The pneumothorax has nearly resolved. || pneumothorax+
        Chest tube has been removed, small pneumothorax. || device- pneumothorax+
    """,
    "doubt after the finding, and around it": """
        Trace, if any, effusion. || effusion?
        Pleural effusion, if any, is small. || effusion?
        If present, the effusion is small. || effusion?
        There is at most a trace effusion. || effusion?
        Pneumonia remains in the differential. || pneumonia?
        Aspiration and pneumonia are in the differential. || pneumonia?
        Atelectasis is favored. || atelectasis?
        Atelectasis more likely than pneumonia. || atelectasis? pneumonia?
        Atelectasis is favored over pneumonia. || atelectasis? pneumonia?
        Favor atelectasis. || atelectasis?
        Pneumonia not excluded. || pneumonia?
        Pneumonia is not entirely excluded. || pneumonia?
        Edema is questioned. || edema?
        A nodule is suspected. || lesion?
        Infection might have a similar appearance. || pneumonia?
        Atelectasis may account for this. || atelectasis?
        Pneumonia should be considered. || pneumonia?
        Pneumonia is a possibility. || pneumonia?
        Infection is of concern. || pneumonia?
        Pneumonia? || pneumonia?
        Pneumothorax cannot be ruled out. || pneumothorax?
        There is concern for pneumonia. || pneumonia?
        There is a question of a nodule. || lesion?
        Heart size is normal to mildly enlarged. || heart?
        Nothing to suggest edema. || edema-
        No convincing evidence for edema. || edema-
    """,
    "shadows, and what is not calcified": """
        Noncalcified nodule at the left apex. || lesion+
        Non calcified nodules in both lungs. || lesion+
        The nodule is not calcified. || lesion+
        The nodules are densely calcified. ||
        The nodule is probably calcified. || lesion+
        Abnormal configuration of the heart. ||
        The mediastinum is abnormal. || mediastinum+
        The nodule represents a nipple shadow. ||
        Bilateral nipple shadows. ||
        Nodular density at the left base, likely a nipple shadow. ||
        Rounded opacities are likely nipple shadows. || opacity+
        Nodule versus nipple shadow. || lesion?
        Skin fold mimics a pneumothorax. ||
    """,
    "dashes of any kind, and hidden characters": """
        No pneumothorax—small effusion. || pneumothorax- effusion+
        No pneumothorax–small effusion. || pneumothorax- effusion+
        No pneumothorax - small effusion. || pneumothorax- effusion+
        Effusion — none. || effusion-
        Edema: none. || edema-
        Pneumo\u00adthorax is absent. || pneumothorax-
        Pleural eﬀusion. || effusion+
        Right\u2011sided effusion. || effusion+
    """,
    "abbreviations, other spellings, misspellings": """
        RLL PNA. || pneumonia+
        No PTX. || pneumothorax-
        Pulmonary oedema. || edema+
        Haemopneumothorax. || effusion+ pneumothorax+
        Bilateral effussions. || effusion+
        Right pneumothroax. || pneumothorax+
        Cardiomegally. || heart+
        Left basilar consoldation. || consolidation+
        Rib fx. || fracture+
        ETT in place. || device+
        NGT tip in the stomach. || device+
        Engorged pulmonary vessels. || edema+
        Right lower lobe infiltarte. || opacity+
        Bronchopneumonia. || pneumonia+
    """,
    "several statements in one sentence": """
        There isn't a pneumothorax. || pneumothorax-
        The effusion hasn't resolved. || effusion+
        We can't exclude pneumonia. || pneumonia?
        Lungs: no consolidation; Pleura: small effusion; Heart: normal. || consolidation- effusion+ heart-
        The heart is enlarged without edema. || heart+ edema-
        Cardiac silhouette enlarged, lungs clear. || heart+
        Cardiothoracic ratio is increased. || heart+
        The effusion is no longer large. || effusion+
        No focal consolidation is seen, small effusion is noted. || consolidation- effusion+
        No effusion or pneumothorax is identified, and heart size is normal. || effusion- pneumothorax- heart-
        Lungs clear without effusion, unchanged cardiomegaly. || effusion- heart+
        Previously seen effusion is not visualized. || effusion-
        Pneumothorax is not definitely seen. || pneumothorax-
        Free of effusion, with a right-sided port. || effusion- device+
        Neither pneumothorax nor effusion; stable pacemaker. || pneumothorax- effusion- device+
        No evidence of pneumothorax in this patient with rib fractures. || pneumothorax- fracture+
        No new opacity. || opacity-
        No infiltrate, there is a nodule. || opacity- lesion+
        No longer any effusion. || effusion-
        Without effusion or pneumothorax. || effusion- pneumothorax-
        Nil effusion. || effusion-
        Effusion absent, pneumothorax present. || effusion- pneumothorax+
        Atelectasis with no effusion. || atelectasis+ effusion-
        Support lines in place without pneumothorax. || device+ pneumothorax-
    """,
    "more of all kinds": """
        Pneumothorax is not seen; however, effusion persists. || pneumothorax- effusion+
        There has been interval development of a left effusion. || effusion+
        The previously noted pneumothorax has decreased, effusion is unchanged. || pneumothorax+ effusion+
        No pneumothorax. Tubes and lines as above. || pneumothorax- device+
        Without evidence for pneumonia, the lungs show mild edema. || pneumonia- edema+
        No airspace consolidation to suggest pneumonia, stable cardiomegaly. || consolidation- pneumonia- heart+
        Suspicion for pneumonia is low. || pneumonia?
        Low suspicion for pneumonia. || pneumonia?
        Not consistent with pneumonia. || pneumonia-
        The opacity is not typical of pneumonia. || opacity+ pneumonia-
        Less suggestive of pneumonia. || pneumonia?
        No pneumothorax is identified, although evaluation is limited. || pneumothorax-
        Cannot rule out a small effusion. || effusion?
        Equivocal for pneumonia. || pneumonia?
        An early infiltrate cannot be completely excluded. || opacity?
        Effusion is doubtful. || effusion?
        This may be atelectasis or early pneumonia. || atelectasis? pneumonia?
        Hazy opacity, infection versus edema. || opacity+ pneumonia? edema?
        Left basilar opacity compatible with atelectasis; pneumonia less likely. || opacity+ atelectasis+ pneumonia?
        Pneumonia is less likely. || pneumonia?
        More likely atelectasis than pneumonia. || atelectasis? pneumonia?
        No overt edema or frank consolidation. || edema- consolidation-
        No pleural effusions bilaterally, no pneumothorax. || effusion- pneumothorax-
        No obvious fracture, dislocation or lesion. || fracture-
        Clear of consolidation and effusion. || consolidation- effusion-
        The right pneumothorax is not as large as before. || pneumothorax+
        No appreciable pneumothorax remains. || pneumothorax-
        No residual pneumothorax. || pneumothorax-
        Pneumothorax no longer evident. || pneumothorax-
        Right effusion has not changed. || effusion+
        Edema has not improved. || edema+
        The chest tube is unchanged with no pneumothorax. || device+ pneumothorax-
        Chest tube removed without pneumothorax. || device- pneumothorax-
        Right IJ line removed, left PICC remains. || device+
        The ET tube has been removed and the NG tube remains. || device+
        Absent pneumothorax. || pneumothorax-
        No signs of CHF, moderate cardiomegaly. || edema- heart+
        No mass, nodule, or infiltrate; calcified granuloma. || lesion- opacity-
        No rib fracture, right-sided pneumothorax. || fracture- pneumothorax+
        No pneumothorax or effusion and stable bibasilar atelectasis. || pneumothorax- effusion- atelectasis+
        No evidence of acute infection, chronic scarring at the bases. || pneumonia- opacity+
        Negative for pneumothorax, positive for effusion. || pneumothorax- effusion+
        No effusion on the left, moderate effusion on the right. || effusion+
        No pneumothorax (small effusion). || pneumothorax- effusion+
        No pneumothorax: small effusion. || pneumothorax- effusion+
        Edema, effusion: none. || edema- effusion-
        No edema/effusion. || edema- effusion-
        Suggestion of a small effusion. || effusion?
        The findings suggest edema. || edema?
        Findings suggestive of pneumonia. || pneumonia?
        Findings most compatible with edema. || edema+
        Consolidation worrisome for pneumonia. || consolidation+ pneumonia?
        There might be a small pneumothorax. || pneumothorax?
        Pneumonia could be present. || pneumonia?
        There is a possible nodule. || lesion?
        Heart is not enlarged, no effusion. || heart- effusion-
        Mediastinum is not widened. || mediastinum-
        The cardiac silhouette is enlarged, but unchanged. || heart+
        No pericardial or pleural effusion. || effusion-
        No pleural or pericardial effusion. || effusion-
        Status post removal of left chest tube, no pneumothorax. || device- pneumothorax-
        After chest tube removal there is no pneumothorax. || device- pneumothorax-
        Tube placement without pneumothorax. || device+ pneumothorax-
        A pneumothorax has not developed. || pneumothorax-
        Development of pneumothorax. || pneumothorax+
        No development of pneumothorax. || pneumothorax-
        No cause for pneumothorax. || pneumothorax-
        Not certain if this is pneumonia. || pneumonia?
        Pneumonia is not ruled out. || pneumonia?
        Pneumonia vs atelectasis. || pneumonia? atelectasis?
        No opacity that could represent pneumonia. || opacity- pneumonia-
        Opacity that could represent pneumonia. || opacity+ pneumonia?
        CHF has resolved. || edema-
        Interval clearing of the infiltrate. || opacity-
        Effusion gone. || effusion-
        Heart failure is unlikely. || edema-
        Pulmonary edema is excluded. || edema-
        No pleural effusion, heart size normal. || effusion- heart-
    """,
}
ROWS = [
    pytest.param(*line.strip().split(" ||"), id=line.strip())
    for lines in SENTENCES.values()
    for line in lines.strip().splitlines()
]


@pytest.mark.parametrize(("sentence", "said"), ROWS)
def test_a_sentence_says_its_codes(sentence, said):
    assert codes_read(sentence) == codes_of(said)
